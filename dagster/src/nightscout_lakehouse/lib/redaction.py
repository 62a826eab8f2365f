"""Secrets blacked out of texts that are kept or sent: what a run failed by, what is logged, lineage, alerts."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from urllib.parse import quote, quote_plus, unquote, urlsplit

from pydantic import SecretStr

from nightscout_lakehouse.lib.alerts.targets import secret_parts
from nightscout_lakehouse.lib.embedded_postgres import generated_passwords
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site, load_sites

MASK: Final = "***"
# A shorter one would black out half of every text, and guards nothing.
_SHORTEST: Final = 4

# Addresses are no secrets; what they carry is.
_ADDRESSES: Final = frozenset(
    {"nightscout_url", "database_url", "dagster_postgres_url", "openlineage_url", "superset_database_url"}
)

# Lists of addresses, of which every part may be the secret.
_ALERT_ADDRESSES: Final = frozenset({"alert_urls", "alert_escalation_urls"})
_NO_SECRETS: Final = frozenset({"127.0.0.1", "localhost"})

# What looks like a secret, whoever's it is: credentials of a URL, tokens in a query, headers.
_PATTERNS: Final = (
    (re.compile(r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)"), MASK),
    (
        re.compile(r"(?i)(?<=[?&;])(token|secret|api_secret|password|key|signature|x-amz-[a-z-]+)=[^\s&#\"']+"),
        rf"\1={MASK}",
    ),
    (re.compile(r"(?i)\b(token|password|secret|api[-_]?key)(=|%3D)[^\s&'\"]+"), rf"\1\2{MASK}"),
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
        if self._known is not None:
            text = self._known.sub(MASK, text)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text

    def clean_value(self, value: Any) -> Any:
        """A JSON value without secrets in any of its texts, keys included."""
        if isinstance(value, str):
            return self.clean(value)
        if isinstance(value, Mapping):
            return {self.clean(str(name)): self.clean_value(item) for name, item in value.items()}
        if isinstance(value, list | tuple | set):
            return [self.clean_value(item) for item in value]
        return value

    @cached_property
    def _known(self) -> re.Pattern[str] | None:
        return re.compile("|".join(map(re.escape, self.secrets))) if self.secrets else None


def redactor(settings: Settings, sites: Sequence[Site] = ()) -> Redactor:
    """What blacks out every secret of a lakehouse.

    Args:
        settings: With the secrets of the environment; those of its embedded Postgres are read from their files.
        sites: The sites, whose secrets the environment may hold under names of their own.
    """
    return Redactor.of([*_of_settings(settings), *_of_sites(sites), *generated_passwords(settings.postgres_dir)])


def redactor_with_sites(settings: Settings) -> Redactor:
    """What blacks out every secret, those of the configured sites too."""
    return redactor(settings, known_sites(settings))


def known_sites(settings: Settings) -> list[Site]:
    """The configured sites; none if they cannot be read, which is said where they are needed."""
    with suppress(LakehouseError):
        return load_sites(settings)
    return []


def _of_settings(settings: Settings) -> Iterable[str]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if not isinstance(value, SecretStr) or not value.get_secret_value():
            continue
        text = value.get_secret_value()
        if name in _ADDRESSES:
            yield from _of_url(text)
        elif name in _ALERT_ADDRESSES:
            yield from (part for part in secret_parts(value) if part not in _NO_SECRETS)
        else:
            yield text


def _of_url(url: str) -> Iterable[str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = None
    if parts is None or not parts.netloc:
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


def _forms(secret: str) -> Iterable[str]:
    yield secret
    yield quote(secret, safe="")
    yield quote_plus(secret)
    # Nightscout takes the API secret as this.
    yield hashlib.sha1(secret.encode(), usedforsecurity=False).hexdigest()
