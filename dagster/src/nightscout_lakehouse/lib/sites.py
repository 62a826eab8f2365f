"""Sites: the people whose data one lakehouse holds, each read from a Nightscout server, from files, or from both."""

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit, urlunsplit
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator

from nightscout_lakehouse.lib.alerts.rules import DEFAULT_RULES, AlertRules
from nightscout_lakehouse.lib.errors import ConfigurationError
from nightscout_lakehouse.lib.settings import Settings, site_secret

_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True)
class Site:
    """One person: a Nightscout server, or a name for what comes from files alone.

    Attributes:
        name: Short unique name; it stands in the column `site` of every table.
        url: Base URL without a trailing slash, query or credentials; empty where files are all there is.
        timezone: IANA name from the configuration, or None: then the server's profile decides.
        sensor_interval_minutes: Nominal distance of two readings of the sensor, or None: the readings show it.
        token: Access token; empty for none.
        api_secret: API secret; empty for none. The token goes first where both are set.
        date_order: Order of day and month in exported files that do not show it.
        alerts: Thresholds and quiet hours of its alerts.
    """

    name: str
    url: str
    timezone: str | None = None
    sensor_interval_minutes: float | None = None
    token: SecretStr = field(default=SecretStr(""), repr=False)
    api_secret: SecretStr = field(default=SecretStr(""), repr=False)
    date_order: Literal["day_first", "month_first"] | None = None
    alerts: AlertRules = DEFAULT_RULES


class _SiteEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    source: Literal["nightscout", "files"] = "nightscout"
    url: str | None = Field(None, validate_default=True)
    token_env: str = ""
    api_secret_env: str = ""
    timezone: str | None = None
    sensor_interval_minutes: float | None = Field(None, gt=0, le=60)
    date_order: Literal["day_first", "month_first"] | None = None
    alerts: AlertRules = DEFAULT_RULES

    @field_validator("url", mode="after")
    @classmethod
    def _needed_for_a_server(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("source") == "nightscout":
            raise ValueError('Field required (or source = "files" for a site without a server)')
        return value


class _SitesFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sites: list[_SiteEntry] = Field(min_length=1)


def load_sites(settings: Settings) -> list[Site]:
    """The servers to read: those of `sites.toml` if it exists, else the one that `NIGHTSCOUT_URL` names.

    Returns:
        The sites with a server, in the order of the file; empty if none is configured.

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
        return [site for site in _sites_from_file(settings.sites_file) if site.url]
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


def load_sites_of_files(settings: Settings) -> list[Site]:
    """The sites of `sites.toml` with `source = "files"`: they have no server.

    Raises:
        ConfigurationError: As `load_sites`.
    """
    if not settings.sites_file.is_file():
        return []
    return [site for site in _sites_from_file(settings.sites_file) if not site.url]


def site_of_files(name: str, timezone: str | None, settings: Settings, where: str) -> Site:
    """A site that no configuration names: a folder of dropped files, or what `lakehouse import` is told.

    Raises:
        ConfigurationError: The name or the time zone is not usable.
    """
    _check_name(name, where)
    return Site(
        name=name,
        url="",
        timezone=checked_timezone(timezone, where),
        sensor_interval_minutes=settings.sensor_interval_minutes,
    )


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
            url=entry.url or "",
            timezone=entry.timezone,
            sensor_interval_minutes=entry.sensor_interval_minutes,
            token=_secret(entry.token_env, entry.name, path),
            api_secret=_secret(entry.api_secret_env, entry.name, path),
            where=f"{path.name}, site {entry.name}",
            date_order=entry.date_order,
            alerts=entry.alerts,
            is_of_files=entry.source == "files",
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
    date_order: Literal["day_first", "month_first"] | None = None,
    alerts: AlertRules = DEFAULT_RULES,
    is_of_files: bool = False,
) -> Site:
    _check_name(name, where)
    timezone = checked_timezone(timezone, where)
    if is_of_files:
        if url or token.get_secret_value() or api_secret.get_secret_value():
            raise ConfigurationError(
                f'{where}: a site with source = "files" has no url, token or API secret.',
                "Remove source to read the server; files are read for every site.",
            )
        return Site(name, "", timezone, sensor_interval_minutes, date_order=date_order)
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
    return Site(
        name=name,
        url=urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", "")),
        timezone=timezone,
        sensor_interval_minutes=sensor_interval_minutes,
        token=token if token.get_secret_value() else SecretStr(pasted_token),
        api_secret=api_secret,
        date_order=date_order,
        alerts=alerts,
    )


def is_site_name(name: str) -> bool:
    """Whether a name can be a site's: it stands in paths, tables and URLs."""
    return _SITE_NAME.fullmatch(name) is not None


def _check_name(name: str, where: str) -> None:
    if not is_site_name(name):
        raise ConfigurationError(
            f"{where}: the site name {name!r} is not usable.",
            "Use letters, digits, '-', '_' and '.', at most 63 characters, starting with a letter or digit.",
        )


def checked_timezone(timezone: str | None, where: str) -> str | None:
    """The IANA name that a configured zone means; None for none.

    Raises:
        ConfigurationError: There is no such zone.
    """
    if timezone is None:
        return None
    zone = canonical_timezone(timezone)
    if zone is None:
        raise ConfigurationError(
            f"{where}: {timezone!r} is not a time zone.",
            "Use an IANA name such as Europe/Berlin.",
        )
    ZoneInfo(zone)
    return zone
