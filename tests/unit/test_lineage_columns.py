"""Which columns a column is made of: no edge too many, and none missing that can be known."""

import json
from pathlib import Path

import pytest

from nightscout_lakehouse.lib.lineage.column_lineage import QueryLineage
from nightscout_lakehouse.lib.lineage.documents import document_fields, processed_lineage, raw_sources
from nightscout_lakehouse.lib.lineage.models import ModelLineage, model_lineage
from nightscout_lakehouse.lib.lineage.sql_columns import query_lineage
from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS, DEVICE_STATUS, ENTRIES, TREATMENTS
from nightscout_lakehouse.lib.warehouse import bookkeeping_columns

SCHEMAS = {
    "curated": {"readings": ["site", "day", "glucose", "device"], "days": ["site", "day", "mean"]},
    "ops": bookkeeping_columns(),
}


def direct(lineage: QueryLineage, column: str) -> set[str]:
    return {f"{s.table}.{s.column}" for s in lineage.columns[column] if s.is_direct}


def indirect(lineage: QueryLineage, column: str) -> set[tuple[str, str]]:
    return {(s.column, s.subtype) for s in lineage.columns[column] if not s.is_direct}


def test_stars_through_ctes_joins_and_unions_reach_the_tables() -> None:
    found = query_lineage(
        """
        with r as (select * exclude (device) from curated.readings),
        joined as (select r.*, days.mean from r inner join curated.days using (site, day)),
        both as (
            select site, glucose as value from joined union all select site, mean as value from curated.days
        )
        select both.*, value * 2 as doubled, 'mg/dL' as unit from both
        """,
        "duckdb",
        SCHEMAS,
    )
    assert list(found.columns) == ["site", "value", "doubled", "unit"]
    assert direct(found, "value") == {"curated.readings.glucose", "curated.days.mean"}
    assert {s.subtype for s in found.columns["value"]} == {"IDENTITY"}
    assert {s.subtype for s in found.columns["doubled"]} == {"TRANSFORMATION"}
    assert direct(found, "site") == {"curated.readings.site", "curated.days.site"}
    assert found.columns["unit"] == ()
    assert found.tables == ("curated.days", "curated.readings")
    assert found.unresolved == ()


def test_what_only_decides_is_not_what_goes_in() -> None:
    found = query_lineage(
        """
        select
            site,
            count(*) filter (where glucose < 70) as low_count,
            avg(glucose) as mean,
            max(case when device = 'x' then glucose end) as of_x,
            count(*) as reading_count
        from curated.readings
        where day > date '2026-01-01'
        group by site
        """,
        "duckdb",
        SCHEMAS,
    )
    assert direct(found, "low_count") == set()
    assert indirect(found, "low_count") == {("glucose", "FILTER")}
    assert [(s.column, s.subtype) for s in found.columns["mean"]] == [("glucose", "AGGREGATION")]
    assert direct(found, "of_x") == {"curated.readings.glucose"}
    assert indirect(found, "of_x") == {("device", "CONDITIONAL")}
    assert found.columns["reading_count"] == ()
    assert {(s.column, s.subtype) for s in found.rows} == {("day", "FILTER"), ("site", "GROUP_BY")}


def test_windows_lateral_joins_subqueries_and_unnest() -> None:
    found = query_lineage(
        """
        select
            lag(r.glucose) over (partition by r.site order by r.day) as before,
            newest.mean as newest_mean,
            (select max(d.mean) from curated.days as d) as highest,
            part.piece as piece
        from curated.readings as r
        cross join lateral (
            select d.mean from curated.days as d where d.site = r.site order by d.day desc limit 1
        ) as newest,
        unnest([r.device]) as part (piece)
        """,
        "duckdb",
        SCHEMAS,
    )
    assert direct(found, "before") == {"curated.readings.glucose"}
    assert {name for name, _ in indirect(found, "before")} == {"site", "day"}
    assert direct(found, "newest_mean") == {"curated.days.mean"}
    assert direct(found, "highest") == {"curated.days.mean"}
    assert direct(found, "piece") <= {"curated.readings.device"}


@pytest.mark.parametrize("on", ["mean, high", "columns(* exclude (site, day))"])
def test_unpivot_stacks_only_its_columns(on: str) -> None:
    found = query_lineage(
        f"""
        with figures as (select site, day, mean, mean * 2 as high from curated.days),
        tidy as (unpivot figures on {on} into name metric value value)
        select * from tidy
        """,
        "duckdb",
        SCHEMAS,
    )
    assert list(found.columns) == ["site", "day", "metric", "value"]
    assert direct(found, "value") == {"curated.days.mean"}
    assert direct(found, "site") == {"curated.days.site"}
    assert found.columns["metric"] == ()


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        # A column of the table goes before a name given beside it; a name that is no column is that one.
        ("select device as site, site || '!' as x, x as y from curated.readings", {"x": {"site"}, "y": {"site"}}),
        ("select * replace (device as site) from curated.readings", {"site": {"device"}, "day": {"day"}}),
        ("select r.* exclude (site), coalesce(r.site, '') as s from curated.readings as r", {"s": {"site"}}),
        ("select list_transform([site], v -> v || device) as both from curated.readings", {"both": {"site", "device"}}),
    ],
)
def test_names_mean_what_they_mean_to_duckdb(sql: str, expected: dict[str, set[str]]) -> None:
    found = query_lineage(sql, "duckdb", SCHEMAS)
    assert {name: {s.column for s in found.columns[name]} for name in expected} == expected


def test_what_cannot_be_resolved_has_no_edge() -> None:
    found = query_lineage(
        "select site, unheard_of.x as x, nobody.y + glucose as y from curated.readings, elsewhere.unheard_of",
        "duckdb",
        SCHEMAS,
    )
    assert found.columns["x"] == ()
    assert direct(found, "y") == {"curated.readings.glucose"}
    assert set(found.unresolved) == {"x", "y"}


def test_the_bookkeeping_of_what_changed_is_no_source() -> None:
    found = model_lineage(
        """
        select r.site, sites.timezone
        from curated.readings as r inner join ops.sites on r.site = sites.site
        where exists (select 1 from ops.changes as c where c.site = r.site and c.change_seq > (
            select max(change_seq) from ops.watermarks where consumer = 'x'))
        """,
        "duckdb",
        SCHEMAS,
    )
    assert found.tables == ("curated.readings", "ops.sites")
    assert direct(found, "timezone") == {"ops.sites.timezone"}
    assert {source.table for source in found.rows} <= {"curated.readings", "ops.sites"}


def test_typed_columns_reach_the_fields_of_the_document(tmp_path: Path) -> None:
    kept = ModelLineage(tmp_path / "columns.json")
    for collection in COLLECTIONS:
        found = processed_lineage(collection, kept)
        assert found.unresolved == (), collection.name
        # The site and what is found by comparing documents come from no field.
        assert set(collection.view_columns) - set(found.columns) == {"site"}
        without = {name for name, sources in found.columns.items() if not sources}
        assert without <= {"is_duplicate", "date_ms", "kind", "month"}, collection.name
        assert {"created_at", "isValid"} <= set(document_fields(found))
    entries = processed_lineage(ENTRIES, kept)
    assert direct(entries, "glucose_mg_dl") == {
        "raw.nightscout_entries.document.sgv",
        "raw.nightscout_entries.document.mbg",
    }
    assert direct(entries, "utc_offset_minutes") == {"raw.nightscout_entries.document.utcOffset"}
    assert direct(processed_lineage(TREATMENTS, kept), "carbs_g") == {"raw.nightscout_treatments.document.carbs"}
    predicted = direct(processed_lineage(DEVICE_STATUS, kept), "predicted_glucose_mg_dl")
    assert {name.rpartition(".")[2] for name in predicted} == {"loop", "openaps"}
    (sgv,) = raw_sources(ENTRIES, document_fields(entries))["document.sgv"]
    assert (sgv.column, sgv.subtype) == ("sgv", "IDENTITY")


def test_a_query_is_parsed_once_for_each_version_of_its_code(tmp_path: Path) -> None:
    path, parsed = tmp_path / "columns.json", []

    def parse() -> QueryLineage:
        parsed.append(1)
        return query_lineage("select glucose from curated.readings", "duckdb", SCHEMAS)

    first = ModelLineage(path)
    found = first.of("m", "v1", parse)
    first.save()
    assert ModelLineage(path).of("m", "v1", parse) == found
    assert len(parsed) == 1
    ModelLineage(path).of("m", "v2", parse)
    assert len(parsed) == 2
    path.write_text(json.dumps([]), encoding="utf-8")
    ModelLineage(path).of("m", "v1", parse)
    assert len(parsed) == 3


def test_a_query_that_is_not_understood_has_no_edges(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = ModelLineage(tmp_path / "x.json").of("odd", "v1", lambda: query_lineage("select from (", "duckdb", {}))
    assert found.columns == {}
    assert "The columns of odd cannot be traced" in caplog.text
