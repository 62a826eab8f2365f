"""Secrets blacked out of texts that are kept: what a run failed by, what is logged."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, quote_plus, unquote, urlsplit

from nightscout_lakehouse.lib.embedded_postgres import OWNER, SUPERUSER, password_file, read_password
from nightscout_lakehouse.lib.serving import READER
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site

MASK: Final = "***"
# A shorter one would black out half of every text, and guards nothing.
_SHORTEST: Final = 4

# What looks like a secret, whoever's it is: credentials of a URL, tokens in a query, headers.
_PATTERNS: Final = (
    (re.compile(r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)"), MASK),
    (
        re.compile(r"(?i)(?<=[?&;])(token|secret|api_secret|password|key|signature|x-amz-[a-z-]+)=[^\s&#\"']+"),
        rf"\1={MASK}",
    ),
    (
        re.compile(r"(?i)\b(api[-_]secret|authorization)(\"?'?\s*[:=]\s*\"?'?)(bearer\s+|basic\s+)?[^\s\"',;&]+"),
        rf"\1\2{MASK}",
    ),
)


@dataclass(frozen=True)
class Redactor:
    """Blacks secrets out of texts.

    Attributes:
        secrets: In every form in which they are sent, the longest first.
    """

    secrets: tuple[str, ...] = ()

    @classmethod
    def of(cls, secrets: Iterable[str]) -> "Redactor":
        """The redactor of these secrets, as they are and as they stand in URLs and headers."""
        forms = {form for secret in secrets if len(secret) >= _SHORTEST for form in _forms(secret)}
        return cls(tuple(sorted(forms, key=lambda form: (-len(form), form))))

    def clean(self, text: str) -> str:
        """The text without secrets."""
        for secret in self.secrets:
            text = text.replace(secret, MASK)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text


def redactor(settings: Settings, sites: Sequence[Site] = ()) -> Redactor:
    """What blacks out every secret of a lakehouse.

    Args:
        settings: With the secrets of the environment; those of its embedded Postgres are read from their files.
        sites: The sites, whose secrets the environment may hold under names of their own.
    """
    return Redactor.of([*_of_settings(settings), *_of_sites(sites), *_of_postgres(settings)])


def _of_settings(settings: Settings) -> Iterable[str]:
    yield settings.nightscout_token.get_secret_value()
    yield settings.nightscout_api_secret.get_secret_value()
    yield settings.s3_secret_access_key.get_secret_value()
    yield settings.s3_access_key_id.get_secret_value()
    # Addresses are no secrets; what they carry is.
    for url in (settings.nightscout_url, settings.database_url):
        yield from _of_url(url.get_secret_value())


def _of_url(url: str) -> Iterable[str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        # Nobody can tell which part of it is the secret.
        yield url
        return
    if parts.password:
        yield parts.password
        yield unquote(parts.password)
    for value in re.findall(r"(?i)(?:token|secret)=([^&#]+)", parts.query):
        yield unquote(value)


def _of_sites(sites: Sequence[Site]) -> Iterable[str]:
    for site in sites:
        yield site.token.get_secret_value()
        yield site.api_secret.get_secret_value()


def _of_postgres(settings: Settings) -> Iterable[str]:
    for role in (OWNER, SUPERUSER, READER):
        password = read_password(password_file(settings.postgres_dir, role))
        if password is not None:
            yield password.get_secret_value()


def _forms(secret: str) -> Iterable[str]:
    yield secret
    yield quote(secret, safe="")
    yield quote_plus(secret)
    # Nightscout takes the API secret as this.
    yield hashlib.sha1(secret.encode(), usedforsecurity=False).hexdigest()
