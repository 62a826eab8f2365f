"""Sites: the Nightscout servers that one lakehouse reads."""

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from nightscout_lakehouse.lib.errors import ConfigurationError
from nightscout_lakehouse.lib.settings import Settings, site_secret

_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True)
class Site:
    """One Nightscout server.

    Attributes:
        name: Short unique name; it stands in the column `site` of every table.
        url: Base URL without a trailing slash, query or credentials.
        timezone: IANA name from the configuration, or None: then the server's profile decides.
        sensor_interval_minutes: Nominal distance of two readings of the sensor, or None: the readings show it.
        token: Access token; empty for none.
        api_secret: API secret; empty for none. The token goes first where both are set.
    """

    name: str
    url: str
    timezone: str | None = None
    sensor_interval_minutes: float | None = None
    token: SecretStr = field(default=SecretStr(""), repr=False)
    api_secret: SecretStr = field(default=SecretStr(""), repr=False)


class _SiteEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    url: str
    token_env: str = ""
    api_secret_env: str = ""
    timezone: str | None = None
    sensor_interval_minutes: float | None = Field(None, gt=0, le=60)


class _SitesFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sites: list[_SiteEntry] = Field(min_length=1)


def load_sites(settings: Settings) -> list[Site]:
    """The sites to read: those of `sites.toml` if it exists, else the one that `NIGHTSCOUT_URL` names.

    Returns:
        At least one site, in the order of the file; empty if neither is configured.

    Raises:
        ConfigurationError: The file, a name, a URL or a time zone is malformed, or both ways are used at once.
    """
    from_file = settings.sites_file.is_file()
    url = settings.nightscout_url.get_secret_value()
    if from_file and url:
        raise ConfigurationError(
            f"Both NIGHTSCOUT_URL and {settings.sites_file.name} are set.",
            "Keep one: move the URL into the file, or remove the file.",
        )
    if from_file:
        return _sites_from_file(settings.sites_file)
    if not url:
        return []
    return [
        _site(
            name=settings.nightscout_site,
            url=url,
            timezone=settings.nightscout_timezone or None,
            sensor_interval_minutes=settings.sensor_interval_minutes,
            token=settings.nightscout_token,
            api_secret=settings.nightscout_api_secret,
            where="NIGHTSCOUT_URL",
        )
    ]


def canonical_timezone(name: str) -> str | None:
    """The IANA name that a time zone name means, or None.

    Nightscout profiles write some zones in capitals (`ETC/GMT+5`), so the case is not significant.
    """
    return {zone.lower(): zone for zone in available_timezones()}.get(name.strip().lower())


def _sites_from_file(path: Path) -> list[Site]:
    try:
        parsed = _SitesFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path.name} is not valid TOML: {error}.") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ConfigurationError(
            f"{path.name}, key {where}: {problem['msg']}.",
            "See sites.example.toml for the keys it takes.",
        ) from None
    names = [entry.name for entry in parsed.sites]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigurationError(
            f"{path.name} names a site twice: {', '.join(repeated)}.",
            "Give each its own name.",
        )
    return [
        _site(
            name=entry.name,
            url=entry.url,
            timezone=entry.timezone,
            sensor_interval_minutes=entry.sensor_interval_minutes,
            token=_secret(entry.token_env, entry.name, path),
            api_secret=_secret(entry.api_secret_env, entry.name, path),
            where=f"{path.name}, site {entry.name}",
        )
        for entry in parsed.sites
    ]


def _secret(variable: str, site: str, path: Path) -> SecretStr:
    if not variable:
        return SecretStr("")
    secret = site_secret(variable)
    if not secret.get_secret_value():
        raise ConfigurationError(
            f"{path.name}, site {site}: the environment variable {variable} is not set.",
            "Set it, or put it in .env.",
        )
    return secret


def _site(
    *,
    name: str,
    url: str,
    timezone: str | None,
    sensor_interval_minutes: float | None,
    token: SecretStr,
    api_secret: SecretStr,
    where: str,
) -> Site:
    if not _SITE_NAME.fullmatch(name):
        raise ConfigurationError(
            f"{where}: the site name {name!r} is not usable.",
            "Use letters, digits, '-', '_' and '.', at most 63 characters, starting with a letter or digit.",
        )
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(
            f"{where}: the URL does not start with http:// or https:// and a host name.",
            "Write it as in the browser, for example https://my-nightscout.example.org.",
        )
    # People paste the address with its token. It must not stay in a URL: URLs end up in logs.
    pasted_token = parse_qs(parts.query).get("token", [""])[0] or (parts.password or "")
    host = parts.hostname if ":" not in parts.hostname else f"[{parts.hostname}]"
    netloc = f"{host}:{parts.port}" if parts.port else host
    if timezone is not None:
        zone = canonical_timezone(timezone)
        if zone is None:
            raise ConfigurationError(
                f"{where}: {timezone!r} is not a time zone.",
                "Use an IANA name such as Europe/Berlin.",
            )
        ZoneInfo(zone)
        timezone = zone
    return Site(
        name=name,
        url=urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", "")),
        timezone=timezone,
        sensor_interval_minutes=sensor_interval_minutes,
        token=token if token.get_secret_value() else SecretStr(pasted_token),
        api_secret=api_secret,
    )
