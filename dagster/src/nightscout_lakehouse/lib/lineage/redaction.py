"""No secret leaves in an event: every text is searched for those that are known, and for what looks like one."""

import hashlib
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from nightscout_lakehouse.lib.settings import Settings

_HIDDEN = "***"
# Shorter ones would black out parts of common words.
_SHORTEST = 4
_LOGIN_IN_URL = re.compile(r"(?<=://)[^/\s:@'\"]*:[^\s@'\"]+@")
_NAMED = re.compile(r"(?i)\b(token|api[-_]?secret|password|secret|api[-_]?key)(=|%3D)[^&\s'\"]+")


def known_secrets(settings: Settings, others: Iterable[str] = ()) -> tuple[str, ...]:
    """Every secret of the settings and the given ones, in each form that it may have in a text; the longest first.

    Args:
        settings: The settings.
        others: Secrets of the sites, generated passwords.
    """
    plain = {*(value.get_secret_value() for value in settings.secrets), *others}
    plain |= {part for value in plain if "://" in value for part in _secrets_of_url(value)}
    # Nightscout takes the API secret as its SHA-1, which opens the same door.
    hashed = {hashlib.sha1(value.encode(), usedforsecurity=False).hexdigest() for value in plain}
    forms = {form for value in plain for form in (value, quote(value, safe="")) if len(form) >= _SHORTEST} | hashed
    return tuple(sorted(forms, key=len, reverse=True))


def _secrets_of_url(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
        return [
            unquote(parts.password or ""),
            *(value for _, value in parse_qsl(parts.query) if len(value) > _SHORTEST),
        ]
    except ValueError:
        return []


def redacted(value: Any, secrets: Iterable[str]) -> Any:
    """A JSON value with every secret blacked out in all its texts, keys included."""
    known = tuple(secrets)
    return _redacted(value, re.compile("|".join(re.escape(secret) for secret in known)) if known else None)


def _redacted(value: Any, known: re.Pattern[str] | None) -> Any:
    if isinstance(value, str):
        text = known.sub(_HIDDEN, value) if known is not None else value
        if "://" in text:
            text = _LOGIN_IN_URL.sub(f"{_HIDDEN}@", text)
        return _NAMED.sub(rf"\1\2{_HIDDEN}", text)
    if isinstance(value, dict):
        return {_redacted(key, known): _redacted(item, known) for key, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item, known) for item in value]
    return value
