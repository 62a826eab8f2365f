"""Batch files to typed Parquet: every form of time and value, versions, deletions, quarantine, conservation."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake, batch_file, partition_file, processing_state_file
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.processing import pending_batches, process_sites
from nightscout_lakehouse.lib.settings import Settings, load_settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import open_warehouse

NOW = datetime(2026, 3, 15, 12, 0, tzinfo=UTC)
READING_MS = int(datetime(2026, 3, 10, 8, 0, tzinfo=UTC).timestamp() * 1000)
SITE = Site("anna", "http://127.0.0.1:1", timezone="Europe/Berlin")


def entry(number: int, **changes: Any) -> str:
    document = {
        "_id": f"{number:024x}",
        "type": "sgv",
        "sgv": 120,
        "date": READING_MS + number * 300_000,
        "device": "sensor",
        "direction": "Flat",
    }
    document.update(changes)
    return json.dumps({key: value for key, value in document.items() if value != "absent"})


def land(lake: Lake, number: int, documents: Sequence[str], site: str = "anna") -> None:
    write_batch(lake, site, number, documents_from_json(documents), NOW)


def rows(settings: Settings, columns: str, where: str = "true") -> list[tuple[Any, ...]]:
    with open_warehouse(settings) as warehouse:
        return warehouse.execute(f"select {columns} from lake.nightscout_entries where {where} order by all").fetchall()


# What is sent, by what is odd about it; each of these is a reading of READING_MS.
TIMES: dict[str, dict[str, Any]] = {
    "number": {"date": READING_MS},
    "fraction": {"date": READING_MS + 0.56},
    "number as text": {"date": str(READING_MS)},
    "mills only": {"date": "absent", "mills": READING_MS},
    "text in UTC": {"date": "absent", "dateString": "2026-03-10T08:00:00.000Z"},
    "text with a zone": {"date": None, "dateString": "2026-03-10T09:00:00+01:00"},
    "zone without colon": {"date": None, "dateString": "2026-03-10T03:00:00.000-0500"},
    "text and utcOffset": {"date": None, "dateString": "2026-03-10 10:00:00", "utcOffset": 120},
    "text in the site's zone": {"date": None, "dateString": "2026-03-10T09:00:00"},
    "text in date": {"date": "2026-03-10T08:00:00Z"},
    "created_at": {"date": None, "created_at": "2026-03-10T08:00:00Z"},
    "number beyond time": {"date": 1e300, "sysTime": "2026-03-10T08:00:00Z"},
}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sgv": None}, "missing_glucose"),
    ({"sgv": "absent"}, "missing_glucose"),
    ({"sgv": 5}, "sensor_error_code"),
    ({"sgv": 19.9}, "sensor_error_code"),
    ({"sgv": 0}, "glucose_out_of_range"),
    ({"sgv": -40}, "glucose_out_of_range"),
    ({"sgv": 601}, "glucose_out_of_range"),
    ({"sgv": "HIGH"}, "glucose_sentinel"),
    ({"sgv": "low"}, "glucose_sentinel"),
    ({"sgv": "NaN"}, "glucose_not_a_number"),
    ({"sgv": "Infinity"}, "glucose_not_a_number"),
    ({"sgv": {"a": 1}}, "glucose_not_a_number"),
    ({"date": 4_070_908_800_000}, "timestamp_in_future"),
    ({"date": int((NOW + timedelta(minutes=16)).timestamp() * 1000)}, "timestamp_in_future"),
    ({"date": 0}, "timestamp_too_old"),
    ({"date": -5}, "timestamp_too_old"),
    ({"date": "absent"}, "unreadable_timestamp"),
    ({"date": "tomorrow"}, "unreadable_timestamp"),
    ({"type": "etc"}, "unknown_type"),
    ({"type": "absent", "sgv": "absent"}, "unknown_type"),
    ({"_id": "absent"}, "missing_id"),
    ({"_id": 7}, "missing_id"),
]
NO_DOCUMENTS = ["[1, 2]", '"text"', "7", "null", '{"_id": "a", "sgv": 100, "device": "\\ud800"}']
BOUNDS: list[float | str] = [20, 600, "142", 152.7]


def case(first: int, place: int, **changes: Any) -> str:
    """The document of one case; cases have numbers of their own, since they are processed together."""
    return entry(first + place, **({"date": READING_MS} | changes))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A lakehouse of all the cases, processed at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAKEHOUSE_HOME", str(tmp_path_factory.mktemp("cases")))
        settings = load_settings()
        lake = Lake.open(settings)
        documents = [case(100, place, **changes) for place, changes in enumerate(TIMES.values())]
        documents += [case(200, place, **changes) for place, (changes, _) in enumerate(REFUSED)]
        documents += NO_DOCUMENTS
        documents += [case(300, place, sgv=sgv) for place, sgv in enumerate(BOUNDS)]
        land(lake, 1, documents)
        (report,) = process_sites([SITE], settings, lake)
        assert report.documents == len(documents) == report.stored + report.duplicates + report.quarantined
        assert report.quarantined == len(REFUSED) + len(NO_DOCUMENTS)
    return settings


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@pytest.mark.parametrize("name", TIMES)
def test_time_is_understood_in_every_form(cases: Settings, name: str) -> None:
    number = 100 + list(TIMES).index(name)
    found = rows(cases, "kind, epoch_ms(reading_timestamp)", f"nightscout_id = '{number:024x}'")
    assert found == [("sgv", READING_MS)]


@pytest.mark.parametrize("place", range(len(REFUSED)), ids=lambda place: f"{REFUSED[place]}")
def test_what_is_no_reading_goes_to_quarantine_with_its_text(cases: Settings, place: int) -> None:
    changes, reason = REFUSED[place]
    found = rows(cases, "kind, quarantine_reason", f"document = {quoted(case(200, place, **changes))}")
    assert found == [("quarantined", reason)]


@pytest.mark.parametrize("document", NO_DOCUMENTS)
def test_json_that_is_no_document_is_quarantined(cases: Settings, document: str) -> None:
    found = rows(cases, "kind, quarantine_reason", f"document = {quoted(document)}")
    assert found == [("quarantined", "not_a_json_object")]


@pytest.mark.parametrize("sgv", BOUNDS)
def test_values_at_the_bounds_and_as_text_are_readings(cases: Settings, sgv: float | str) -> None:
    found = rows(cases, "glucose_mg_dl", f"nightscout_id = '{300 + BOUNDS.index(sgv):024x}'")
    assert found == [(float(sgv),)]


def test_kinds_are_kept_apart(settings: Settings, lake: Lake) -> None:
    land(
        lake,
        1,
        [
            entry(1),
            entry(2, type="mbg", mbg=98, sgv="absent"),
            entry(3, type="cal", slope=895.8, intercept=34281.2, scale=1, sgv="absent"),
            entry(4, type="absent"),
        ],
    )
    process_sites([SITE], settings, lake)
    assert rows(settings, "kind, glucose_mg_dl, slope") == [
        ("cal", None, 895.8),
        ("mbg", 98.0, None),
        ("sgv", 120.0, None),
        ("sgv", 120.0, None),
    ]


def test_the_latest_version_wins_and_the_day_is_touched(settings: Settings, lake: Lake) -> None:
    land(lake, 1, [entry(1)])
    process_sites([SITE], settings, lake)
    land(lake, 2, [entry(1, sgv=99)])
    (report,) = process_sites([SITE], settings, lake)
    assert rows(settings, "glucose_mg_dl") == [(99.0,)]
    assert (report.stored, report.days_changed) == (1, 1)


def test_a_document_that_moves_to_another_month_leaves_the_old_one(settings: Settings, lake: Lake) -> None:
    land(lake, 1, [entry(1), entry(2)])
    process_sites([SITE], settings, lake)
    moved = int(datetime(2026, 1, 5, 8, 0, tzinfo=UTC).timestamp() * 1000)
    land(lake, 2, [entry(1, date=moved)])
    (report,) = process_sites([SITE], settings, lake)
    assert rows(settings, "nightscout_id, month") == [(f"{1:024x}", "2026-01"), (f"{2:024x}", "2026-03")]
    assert report.days_changed == 2


def test_a_partition_that_is_empty_afterwards_is_gone(settings: Settings, lake: Lake) -> None:
    land(lake, 1, [entry(1, sgv=5)])
    process_sites([SITE], settings, lake)
    land(lake, 2, [entry(1, sgv=120)])
    process_sites([SITE], settings, lake)
    assert not lake.exists(partition_file("quarantined", "anna", "2026-03"))
    assert rows(settings, "kind") == [("sgv",)]


def test_same_device_and_time_counts_once_and_the_other_returns_when_it_is_deleted(
    settings: Settings, lake: Lake
) -> None:
    land(lake, 1, [entry(1, date=READING_MS, sgv=100)])
    land(lake, 2, [entry(2, date=READING_MS, sgv=110), entry(3, date=READING_MS, device="other")])
    (report,) = process_sites([SITE], settings, lake)
    counted = "not is_duplicate and not is_deleted"
    assert rows(settings, "glucose_mg_dl, device", counted) == [(110.0, "sensor"), (120.0, "other")]
    assert (report.documents, report.stored, report.duplicates) == (3, 2, 1)
    land(lake, 3, [entry(2, date=READING_MS, sgv=110, isValid=False)])
    process_sites([SITE], settings, lake)
    assert rows(settings, "glucose_mg_dl, device", counted) == [(100.0, "sensor"), (120.0, "other")]


def test_two_sites_with_the_same_document_ids_stay_apart(settings: Settings, lake: Lake) -> None:
    land(lake, 1, [entry(1)])
    land(lake, 1, [entry(1, sgv=200)], site="ben")
    process_sites([SITE, Site("ben", "http://127.0.0.1:1", timezone="UTC")], settings, lake)
    assert rows(settings, "entry_id, glucose_mg_dl") == [
        (f"anna/{1:024x}", 120.0),
        (f"ben/{1:024x}", 200.0),
    ]


def test_processing_again_changes_nothing(settings: Settings, lake: Lake) -> None:
    land(lake, 1, [entry(1), entry(2, sgv=5)])
    process_sites([SITE], settings, lake)
    before = rows(settings, "*")
    lake.delete(processing_state_file("anna"))
    (report,) = process_sites([SITE], settings, lake)
    assert rows(settings, "*") == before
    assert (report.duplicates, report.days_changed) == (2, 0)


def test_a_run_killed_before_its_state_is_written_is_made_good(
    settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(lake, 1, [entry(1)])
    process_sites([SITE], settings, lake)
    land(lake, 2, [entry(2), entry(3, sgv=5)])
    written = []

    def dies_at_the_second(self: Lake, connection: object, relative: str, query: str) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(relative)

    with monkeypatch.context() as patched:
        patched.setattr(Lake, "write_query", dies_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            process_sites([SITE], settings, lake)
    assert pending_batches(lake, "anna") == [2]
    process_sites([SITE], settings, lake)
    assert len(rows(settings, "nightscout_id")) == 3
    with open_warehouse(settings) as warehouse:
        assert warehouse.execute(
            "select documents, stored, quarantined from ops.batches where batch = 2"
        ).fetchall() == [(2, 1, 1)]


def test_days_are_those_of_the_site(settings: Settings, lake: Lake) -> None:
    late_evening = int(datetime(2026, 3, 10, 23, 30, tzinfo=UTC).timestamp() * 1000)
    land(lake, 1, [entry(1, date=late_evening)])
    process_sites([SITE], settings, lake)
    with open_warehouse(settings) as warehouse:
        assert warehouse.execute("select site, reading_date::varchar from ops.changes").fetchall() == [
            ("anna", "2026-03-11")
        ]


def test_a_new_time_zone_has_all_days_counted_anew(settings: Settings, lake: Lake) -> None:
    land(lake, 1, [entry(1)])
    process_sites([SITE], settings, lake)
    process_sites([Site("anna", "http://127.0.0.1:1", timezone="America/New_York")], settings, lake)
    with open_warehouse(settings) as warehouse:
        assert (None,) in warehouse.execute("select reading_date from ops.changes").fetchall()


def test_an_empty_lake_has_an_empty_view(settings: Settings, lake: Lake) -> None:
    process_sites([SITE], settings, lake)
    assert rows(settings, "*") == []


def test_no_reader_sees_a_half_written_file(settings: Settings, lake: Lake) -> None:
    land(lake, 1, [entry(1)])
    process_sites([SITE], settings, lake)
    files = lake.list_files("processed", recursive=True)
    assert not [file for file in files if ".tmp" in file]


def test_batch_files_keep_every_document_as_it_came(settings: Settings, lake: Lake) -> None:
    document = '{"_id":"a" ,"sgv":1.10, "date":1e3,"note":"ä\\u00e4 \\" 1.0"}'
    land(lake, 1, [document])
    table = pq.read_table(lake.duckdb_path(batch_file("anna", 1)), partitioning=None)
    assert table.column("document").to_pylist() == [document]


_documents = st.lists(
    st.builds(
        entry,
        st.integers(1, 6),
        sgv=st.sampled_from([100, 101, 5, None, "HIGH"]),
        date=st.sampled_from([READING_MS, READING_MS + 300_000, READING_MS - 40 * 86_400_000, 0]),
        device=st.sampled_from(["a", "b", None]),
        isValid=st.sampled_from([True, False]),
    ),
    max_size=10,
)


@given(batches=st.lists(_documents, min_size=1, max_size=4))
@hypothesis_settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_step_by_step_equals_all_at_once_and_nothing_is_lost(
    batches: list[list[str]], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for at_once in (False, True):
        home = tmp_path_factory.mktemp("lakehouse")
        monkeypatch.setenv("LAKEHOUSE_HOME", str(home))
        settings = Settings()
        lake = Lake.open(settings)
        for number, documents in enumerate(batches, start=1):
            land(lake, number, documents)
            if not at_once:
                process_sites([SITE], settings, lake)
        process_sites([SITE], settings, lake)
        outcomes.append(rows(settings, "*"))
        with open_warehouse(settings) as warehouse:
            accounted = warehouse.execute(
                "select coalesce(sum(documents), 0), coalesce(sum(stored + duplicates + quarantined), 0)"
                " from ops.batches"
            ).fetchall()[0]
        assert accounted == (sum(map(len, batches)),) * 2
    assert outcomes[0] == outcomes[1]
