"""Files that people export elsewhere and drop into a folder: `LAKEHOUSE_DROP_DIR/<site>/…`.

The files stay where they are. What has been imported is kept by the hash of its content and by how it was
read, never by name: exports carry the person's name in theirs. So the same bytes are read once, and again
only when the zone, a setting or the way of reading has changed.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.ingestion import site_timezone
from nightscout_lakehouse.lib.lake import Lake, imports_file
from nightscout_lakehouse.lib.nightscout_collections import ENTRIES
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import (
    Site,
    checked_timezone,
    is_site_name,
    load_sites,
    load_sites_of_files,
    site_of_files,
)
from nightscout_lakehouse.lib.sources.base import SourceError
from nightscout_lakehouse.lib.sources.file_format import DateOrder, ReadOptions
from nightscout_lakehouse.lib.sources.file_source import open_file
from nightscout_lakehouse.lib.sources.generic_csv import load_columns
from nightscout_lakehouse.lib.sources.landing import SourceReport, examine, land
from nightscout_lakehouse.lib.sources.registry import FORMATS

logger = logging.getLogger(__name__)

COLUMNS_FILE = "columns.toml"
# What browsers and copying programs call a file that is not whole yet.
_UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".tmp")

Outcome = Literal["imported", "known", "waiting", "failed", "examined"]


@dataclass(frozen=True)
class FileImport:
    """What became of one file.

    Attributes:
        site: Name of the site.
        file: Name of the file below the drop folder. It may hold a person's name: it is shown, never stored.
        outcome: `imported`; `known` (these bytes have been imported); `waiting` (it is still being written);
            `failed`; `examined` (a dry run).
        title: What kind of file it is, or empty.
        timezone: Zone that its times without zone were read in.
        report: What it had, or None.
        message: Why it waits or failed, and how to mend it.
    """

    site: str
    file: str
    outcome: Outcome
    title: str = ""
    timezone: str = ""
    report: SourceReport | None = None
    message: str = ""


def sites_of_files(settings: Settings, lake: Lake) -> list[Site]:
    """The sites that no server is read for: those of `sites.toml`, of the drop folder, and of earlier imports.

    Raises:
        ConfigurationError: `sites.toml` or the zone of the settings is malformed.
    """
    configured = load_sites_of_files(settings)
    taken = {site.name for site in (*load_sites(settings), *configured)}
    found = {folder.name for folder in _folders(settings) if _files(folder)}
    in_lake = {folder.rpartition("site=")[2] for folder in lake.list_folders(f"raw/{ENTRIES.name}")}
    imported = {name for name in in_lake - taken if lake.exists(imports_file(name))}
    names = sorted(name for name in (found | imported) - taken if is_site_name(name))
    unnamed = [site_of_files(name, None, settings, f"drop folder {name}") for name in names]
    return [_with_timezone(site, settings, lake) for site in (*configured, *unnamed)]


def import_drop(sites: Sequence[Site], settings: Settings, lake: Lake) -> list[FileImport]:
    """Import every file of the drop folder that is new or changed; one that fails does not stop the others.

    Args:
        sites: All sites, those with a server too.
        settings: Where the folder is.
        lake: Where the documents land.
    """
    outcomes: list[FileImport] = []
    by_name = {site.name: site for site in sites}
    for path in _loose_files(settings):
        message = f"{path.name} lies in no site's folder. Move it to {settings.drop_dir.name}/NAME/."
        outcomes.append(FileImport("", path.name, "failed", message=message))
    for folder in _folders(settings):
        files = _files(folder)
        if not files:
            continue
        site = by_name.get(folder.name)
        if site is None:
            message = f"The folder name {folder.name!r} is not usable as a site's name: letters, digits, '-', '_', '.'."
            outcomes.append(FileImport(folder.name, folder.name, "failed", message=message))
            continue
        outcomes += [import_file(path, site, settings, lake) for path in files]
        _forget_gone(lake, site.name, files)
    for outcome in outcomes:
        _log(outcome)
    return outcomes


def import_file(
    path: Path, site: Site, settings: Settings, lake: Lake, *, timezone: str | None = None, dry_run: bool = False
) -> FileImport:
    """Import one file for a site, or with `dry_run` only say what it has.

    Args:
        path: The file.
        site: Whose it is.
        settings: Settings of the lake.
        lake: Where its documents land.
        timezone: Zone of its times without zone; the site's if None.
        dry_run: Land nothing, and read also what has been imported.
    """
    zone = timezone or site_timezone(lake, site)[0]
    outcome = FileImport(site.name, path.name, "failed", timezone=zone)
    try:
        return _import(path, site, settings, lake, outcome, dry_run=dry_run)
    except LakehouseError as error:
        return replace(outcome, message=str(error))
    except OSError as error:
        return replace(outcome, message=f"{path.name} cannot be read ({error.strerror}). Check its permissions.")


def import_path(
    path: Path,
    site_name: str,
    settings: Settings,
    *,
    timezone: str | None = None,
    date_order: DateOrder | None = None,
    dry_run: bool = False,
) -> list[FileImport]:
    """Import a file, or all files of a folder, from anywhere.

    Args:
        path: The file or folder.
        site_name: Whose readings these are; a site that is not known yet is one of files alone.
        settings: Settings of the lake.
        timezone: Zone of times without zone. It stays the site's where nothing else names one.
        date_order: Order of day and month where the dates do not show it.
        dry_run: Land nothing.

    Raises:
        ConfigurationError: The site's name or the zone is not usable.
        SourceError: The folder holds no file.
    """
    lake = Lake.open(settings)
    zone = checked_timezone(timezone, "--timezone")
    sites = {site.name: site for site in (*load_sites(settings), *sites_of_files(settings, lake))}
    site = sites.get(site_name) or _with_timezone(site_of_files(site_name, None, settings, "--site"), settings, lake)
    files = [path] if path.is_file() else _files(path)
    if not files:
        raise SourceError(f"{path} holds no file.", "Give an exported file, or a folder with some.")
    if (
        zone is not None
        and not dry_run
        and not site.url
        and site.timezone in (None, _load(lake, site.name)["timezone"])
    ):
        lake.write_json(imports_file(site.name), {**_load(lake, site.name), "timezone": zone})
    site = replace(site, date_order=date_order or site.date_order)
    return [import_file(file, site, settings, lake, timezone=zone, dry_run=dry_run) for file in files]


def _import(
    path: Path, site: Site, settings: Settings, lake: Lake, outcome: FileImport, *, dry_run: bool
) -> FileImport:
    if path.suffix.lower() in _UNFINISHED:
        return replace(outcome, outcome="waiting", message=f"{path.name} is not whole yet; it is left alone.")
    date_order = site.date_order or settings.drop_date_order
    options = ReadOptions(outcome.timezone, date_order, load_columns(path.parent / COLUMNS_FILE))
    how = _how(options)
    state = _load(lake, site.name)
    stamp = _stamp(path)
    seen = state["paths"].get(_path_key(path))
    if not dry_run and seen == [*stamp, how]:
        return replace(outcome, outcome="known")
    content = _content_hash(path)
    is_known = state["files"].get(content, {}).get("how") == how
    report: SourceReport | None = None
    title = ""
    if dry_run or not is_known:
        source = open_file(path, options)
        title = source.title
        report = examine(source)
        if report.refused and not report.documents:
            reason, lines = next(iter(report.refused_lines.items()))
            raise SourceError(
                f"{path.name}: no row can be read as a reading; line {lines[0]}: {reason}.",
                "docs/guide/08-other-sources.md says what each reason means.",
            )
        if _stamp(path) == stamp and not dry_run:
            report = land(source, site.name, settings, lake)
    if _stamp(path) != stamp:
        message = f"{path.name} changed while it was read; it is read when it has come to rest."
        return replace(outcome, outcome="waiting", title=title, message=message)
    outcome = replace(outcome, title=title, report=report)
    if dry_run:
        return replace(outcome, outcome="examined")
    state = _load(lake, site.name)
    if report is not None:
        state["files"][content] = {
            "how": how,
            "kind": report.source,
            "rows": report.rows,
            "documents": report.documents,
            "imported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    state["paths"][_path_key(path)] = [*stamp, how]
    lake.write_json(imports_file(site.name), state)
    return replace(outcome, outcome="known" if is_known else "imported")


def _with_timezone(site: Site, settings: Settings, lake: Lake) -> Site:
    """A site with the zone of its configuration, else of an earlier import, else of the settings."""
    if site.timezone is not None:
        return site
    zone = _remembered_timezone(lake, site.name) or checked_timezone(
        settings.drop_timezone or None, "LAKEHOUSE_DROP_TIMEZONE"
    )
    return replace(site, timezone=zone)


def _load(lake: Lake, site: str) -> dict[str, Any]:
    stored = lake.read_json(imports_file(site)) or {}
    return {"timezone": None, "files": {}, "paths": {}, **stored}


def _remembered_timezone(lake: Lake, site: str) -> str | None:
    zone = _load(lake, site)["timezone"]
    return zone if isinstance(zone, str) else None


def _forget_gone(lake: Lake, site: str, files: Sequence[Path]) -> None:
    """Forget where files lay that are gone; what they held stays known by its content."""
    state = _load(lake, site)
    kept = {_path_key(path) for path in files} & state["paths"].keys()
    if kept != state["paths"].keys():
        lake.write_json(imports_file(site), {**state, "paths": {key: state["paths"][key] for key in kept}})


def _how(options: ReadOptions) -> str:
    """All that decides what a file's bytes become."""
    text = json.dumps([asdict(options), {each.name: each.version for each in FORMATS}], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _path_key(path: Path) -> str:
    # The name of a file may be that of a person.
    return hashlib.blake2b(str(path.absolute()).encode(), digest_size=16).hexdigest()


def _content_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folders(settings: Settings) -> list[Path]:
    return [path for path in _dropped(settings) if path.is_dir()]


def _loose_files(settings: Settings) -> list[Path]:
    return [path for path in _dropped(settings) if path.is_file()]


def _dropped(settings: Settings) -> list[Path]:
    try:
        return sorted(path for path in settings.drop_dir.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SourceError(
            f"The drop folder {settings.drop_dir} cannot be read ({error.strerror}).",
            "Check its permissions, or LAKEHOUSE_DROP_DIR.",
        ) from None


def _files(folder: Path) -> list[Path]:
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != COLUMNS_FILE and not path.name.startswith(".")
    ]
    return sorted(files, key=lambda path: (_modified(path), str(path)))


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        # Gone since it was listed: opening it says so.
        return 0


def _log(outcome: FileImport) -> None:
    if outcome.outcome in ("failed", "waiting"):
        logger.warning("site %s: %s", outcome.site or "none", outcome.message)
    elif outcome.report is not None:
        report = outcome.report
        logger.info(
            "site %s: %s (%s): %s readings, %s new or changed, %s refused",
            outcome.site,
            outcome.file,
            outcome.title,
            f"{report.documents:,}",
            f"{report.landed:,}",
            f"{sum(report.refused.values()):,}",
        )
