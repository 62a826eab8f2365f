"""An export for a doctor or a researcher: tables as CSV or Parquet, with what each column means.

De-identified, a table has only the columns that are named here for it: a column that a model gains later stays out by
itself. Ids, devices, notes, names and the time zone are not among them; a person is called by a random text, and all
dates are moved back by the same whole number of weeks, so that weekdays and times of day stay as they were. Neither the
text nor the number is kept anywhere.
"""

import csv
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from nightscout_lakehouse.lib.care.files import private_file, whole_folder
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.lake import sql_text
from nightscout_lakehouse.lib.settings import DBT_PROJECT_DIR

DICTIONARY: Final = "data_dictionary.csv"
README: Final = "README.txt"

# Trends that Nightscout knows; anything else is text of somebody's own.
_DIRECTIONS: Final = (
    *("DoubleUp", "SingleUp", "FortyFiveUp", "Flat", "FortyFiveDown", "SingleDown", "DoubleDown"),
    *("NONE", "NOT COMPUTABLE", "RATE OUT OF RANGE", "TripleUp", "TripleDown"),
)
# On top of the length of the export, so that no date in it is one of its own: five years at most.
_EXTRA_WEEKS: Final = 260
# A file's time of change would tell when the export was made, and so about where its dates belong.
_NO_TIME: Final = 946_684_800
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")


class Format(StrEnum):
    """How tables are written."""

    CSV = "csv"
    PARQUET = "parquet"


class What(StrEnum):
    """Which tables are written."""

    READINGS = "readings"
    TREATMENTS = "treatments"
    DAILY = "daily"
    EPISODES = "episodes"
    ALL = "all"


@dataclass(frozen=True)
class _Table:
    """A table that can be exported.

    Attributes:
        model: The dbt model it comes from.
        day_column: Its local date, by which it is cut.
        order_by: Columns that its rows are in the order of, after the site.
        deidentified: Columns of a de-identified export, in their order, besides the site.
    """

    model: str
    day_column: str
    order_by: tuple[str, ...]
    deidentified: tuple[str, ...]


_TABLES: Final[Mapping[What, _Table]] = {
    What.READINGS: _Table(
        "fact_glucose_readings",
        "reading_date",
        ("reading_local_timestamp", "entry_id"),
        (
            *("reading_local_timestamp", "reading_date", "hour_of_day", "day_of_week", "glucose_mg_dl"),
            *("glucose_category", "glucose_range", "glucose_change_mg_dl", "minutes_since_previous", "gap_minutes"),
            *("direction", "sensor_interval_minutes"),
        ),
    ),
    What.TREATMENTS: _Table(
        "fact_treatments",
        "reading_date",
        ("treatment_local_timestamp", "treatment_id"),
        (
            *("treatment_local_timestamp", "reading_date", "treatment_kind", "bolus_units", "extended_units"),
            *("extended_minutes", "smb_units", "carbs_g", "protein_g", "fat_g", "duration_minutes"),
            *("temp_basal_units_per_hour", "temp_basal_percent", "profile_percentage", "target_low", "target_high"),
            *("glucose", "is_automatic", "has_implausible_amount", "has_unknown_insulin"),
        ),
    ),
    What.DAILY: _Table(
        "dim_glucose_date",
        "reading_date",
        ("reading_date",),
        (
            *("reading_date", "day_of_week", "is_weekend", "expected_reading_count"),
            *("reading_count", "data_sufficiency_pct", "avg_glucose_mg_dl", "median_glucose_mg_dl"),
            *("sd_glucose_mg_dl", "cv_pct", "min_glucose_mg_dl", "max_glucose_mg_dl", "time_very_low_pct"),
            *("time_low_pct", "time_in_range_pct", "time_high_pct", "time_very_high_pct", "time_below_range_pct"),
            *("time_above_range_pct", "time_in_tight_range_pct", "estimated_a1c_pct", "sensor_interval_minutes"),
            *("carbs_g", "meal_count", "bolus_units", "basal_units", "total_insulin_units", "bolus_share_pct"),
            *("basal_share_pct", "gmi_mmol_mol", "gri", "lbgi", "hbgi", "j_index", "mage_mg_dl"),
        ),
    ),
    What.EPISODES: _Table(
        "fact_glucose_episodes",
        "start_date",
        ("start_local_timestamp", "kind", "level"),
        (
            *("kind", "level", "start_local_timestamp", "start_date", "duration_minutes", "extreme_mg_dl"),
            *("area_mg_dl_minutes", "time_to_recovery_minutes", "reading_count", "is_open", "is_cut_at_start"),
            *("is_cut_at_end", "has_gap", "is_prolonged_below_54", "is_prolonged_below_70"),
            *("is_prolonged_above_180", "is_prolonged_above_250", "is_nocturnal", "has_suspect_readings"),
        ),
    ),
}


@dataclass(frozen=True)
class ExportedTable:
    """A file of an export: its name and the number of its rows."""

    file: str
    rows: int


def export(
    warehouse: duckdb.DuckDBPyConnection,
    target: Path,
    *,
    sites: Sequence[str],
    what: Sequence[What] = (What.ALL,),
    file_format: Format = Format.CSV,
    since: date | None = None,
    until: date | None = None,
    deidentify: bool = False,
) -> list[ExportedTable]:
    """Write tables of some sites into a new folder, which appears when it is whole.

    Args:
        warehouse: Opened for reading.
        target: The folder to make.
        sites: Whose data.
        what: Which tables.
        file_format: How they are written.
        since: First local day.
        until: Last local day.
        deidentify: Leave out what tells who it is, and move the dates.

    Raises:
        LakehouseError: There is no such site, no row, or something in the place.
    """
    names = [each for each in _TABLES if each in what or What.ALL in what]
    known = exportable_sites(warehouse)
    unknown = sorted(set(sites) - set(known))
    if unknown:
        raise LakehouseError(f"There is no site {', '.join(unknown)}.", f"There are: {', '.join(known) or 'none'}.")
    if since and until and since > until:
        raise LakehouseError("--since is after --until.", "Exchange the two.")
    _choose_sites(warehouse, sites, names, since, until, deidentify=deidentify)
    target = target.expanduser().absolute()
    exported: list[ExportedTable] = []
    with whole_folder(target, "export") as folder:
        dictionary: list[tuple[str, str, str, str]] = []
        for each in names:
            table = _read(warehouse, each, since, until, deidentify=deidentify)
            file = f"{each}.{file_format}"
            _write(folder / file, table, file_format)
            exported.append(ExportedTable(file, table.num_rows))
            dictionary += _described(each, table, file, deidentify=deidentify)
        if not any(table.rows for table in exported):
            raise LakehouseError("There is nothing to export.", "Check the site, --since and --until.")
        with private_file(folder / DICTIONARY) as stream:
            _write_csv(stream, ("file", "column", "type", "meaning"), dictionary)
        with private_file(folder / README) as stream:
            stream.write(_readme(exported, since, until, deidentify=deidentify).encode())
        if deidentify:
            for path in (*folder.iterdir(), folder):
                os.utime(path, (_NO_TIME, _NO_TIME))
    if deidentify:
        os.utime(target, (_NO_TIME, _NO_TIME))
    return exported


def exportable_sites(warehouse: duckdb.DuckDBPyConnection) -> list[str]:
    """The sites that there are figures of.

    Raises:
        LakehouseError: The models were never built.
    """
    try:
        return [row[0] for row in warehouse.execute("select site from curated.dim_site order by site").fetchall()]
    except duckdb.CatalogException:
        raise LakehouseError("There is nothing to export yet.", "Run the pipeline first.") from None


def _choose_sites(
    warehouse: duckdb.DuckDBPyConnection,
    sites: Sequence[str],
    names: Sequence[What],
    since: date | None,
    until: date | None,
    *,
    deidentify: bool,
) -> None:
    """Make the temporary table `export_sites`: what each site is called, and by how many weeks its dates are moved."""
    warehouse.execute("create or replace temp table export_sites (site varchar, shown varchar, weeks integer)")
    for site in sites:
        shown, weeks = site, 0
        if deidentify:
            first_and_last: list[date] = []
            for each in names:
                table = _TABLES[each]
                day = table.day_column
                bounds = warehouse.execute(
                    f"select min({day}), max({day}) from curated.{table.model}"
                    f" where site = ? and {day} between coalesce(?, {day}) and coalesce(?, {day})",
                    [site, since, until],
                ).fetchall()[0]
                first_and_last += [bound for bound in bounds if bound is not None]
            days = (max(first_and_last) - min(first_and_last)).days if first_and_last else 0
            weeks = days // 7 + 2 + secrets.randbelow(_EXTRA_WEEKS)
            shown = f"person-{secrets.token_hex(6)}"
        warehouse.execute("insert into export_sites values (?, ?, ?)", [site, shown, weeks])


def _read(
    warehouse: duckdb.DuckDBPyConnection, what: What, since: date | None, until: date | None, *, deidentify: bool
) -> pa.Table:
    table = _TABLES[what]
    kinds = {
        name: kind for name, kind, *_ in warehouse.execute(f"describe select * from curated.{table.model}").fetchall()
    }
    columns = table.deidentified if deidentify else tuple(name for name in kinds if name != "site")
    selected = ["shown as site", *(_expression(name, kinds[name], deidentify=deidentify) for name in columns)]
    order = ["shown", *(f"model.{name}" for name in table.order_by)]
    day = f"model.{table.day_column}"
    # Everybody knows the day on which clocks change: it would tell by how many weeks the dates were moved.
    is_usual_day = f"{_midnight(f'{day} + 1')} - {_midnight(day)} = interval 24 hours" if deidentify else "true"
    result: pa.Table = warehouse.execute(
        f"""
        select {", ".join(selected)}
        from curated.{table.model} as model
        join export_sites using (site)
        join curated.dim_site as site_of using (site)
        where {day} between coalesce(?, {day}) and coalesce(?, {day}) and {is_usual_day}
        order by {", ".join(order)}
        """,
        [since, until],
    ).to_arrow_table()
    return result


def _midnight(day: str) -> str:
    return f"timezone(site_of.timezone, ({day})::timestamp)"


def _expression(name: str, kind: str, *, deidentify: bool) -> str:
    if not deidentify:
        return f"model.{name}"
    if kind in ("DATE", "TIMESTAMP"):
        return f"(model.{name} - to_days(7 * weeks))::{kind} as {name}"
    if kind.startswith("TIMESTAMP"):
        raise LakehouseError(f"The column {name} has a time zone, which is not de-identified.", "Please report it.")
    if name == "direction":
        known = ", ".join(sql_text(direction) for direction in _DIRECTIONS)
        return f"case when model.direction in ({known}) then model.direction end as direction"
    return f"model.{name}"


# Files


def _write(path: Path, table: pa.Table, file_format: Format) -> None:
    with private_file(path) as stream:
        if file_format is Format.PARQUET:
            # Metadata of a schema could tell where it comes from.
            pq.write_table(table.replace_schema_metadata(None), stream, compression="zstd")
            return
        rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
        _write_csv(stream, table.column_names, rows)


def _write_csv(stream: Any, header: Sequence[str], rows: Any) -> None:
    import io

    text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerow(header)
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    text.flush()
    text.detach()


def _cell(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, bool):
        return "true" if value else "false"
    # A spreadsheet would run it as a formula.
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return f"'{value}"
    return value


def _described(what: What, table: pa.Table, file: str, *, deidentify: bool) -> list[tuple[str, str, str, str]]:
    """One row of the dictionary for each column, by the model's own description."""
    meanings = _meanings(_TABLES[what].model) | {"site": "Whose row it is: a random text." if deidentify else "Site."}
    rows = []
    for column in table.schema:
        is_moved = deidentify and (pa.types.is_date(column.type) or pa.types.is_timestamp(column.type))
        meaning = meanings.get(column.name, "") + (" Moved back by whole weeks." if is_moved else "")
        rows.append((file, column.name, str(column.type), meaning))
    return rows


def _meanings(model: str) -> dict[str, str]:
    import yaml

    content = yaml.safe_load((DBT_PROJECT_DIR / "models" / "curated" / f"{model}.yml").read_text(encoding="utf-8"))
    (found,) = (each for each in content["models"] if each["name"] == model)
    return {column["name"]: " ".join(column.get("description", "").split()) for column in found["columns"]}


def _readme(exported: Sequence[ExportedTable], since: date | None, until: date | None, *, deidentify: bool) -> str:
    lines = ["Glucose data, exported from a Nightscout Lakehouse.", ""]
    lines += [f"{table.file}: {table.rows} rows" for table in exported]
    lines += [f"{DICTIONARY}: what each column means", ""]
    if deidentify:
        lines += [
            "De-identified: names, ids, devices, notes and the time zone are left out. All dates of a person are",
            "moved back by the same number of whole weeks: weekdays, times of day and distances are kept, seasons are",
            "not. Days on which clocks change are left out. Neither the number nor who is who is kept anywhere.",
            "",
            "This is not anonymous: whoever has the original readings finds them again by their values, and whoever",
            "knows from which day the newest ones are can count the weeks. Treat it as health data.",
        ]
    else:
        span = f"{since or 'the first day'} to {until or 'the last day'}"
        lines += [f"Local days from {span}. It names the person, the devices and the notes: treat it as health data."]
    lines += [
        "",
        "Glucose is in mg/dL (18.01559 mg/dL are 1 mmol/L). Columns named ..._local_timestamp are wall-clock times of",
        "the person's time zone; those named ..._timestamp alone are UTC. A text that begins like a formula has an",
        "apostrophe before it in CSV. Not for dosing decisions.",
        "",
    ]
    return "\n".join(lines)
