"""Treatments, device status and profiles to typed Parquet: every form of time, unit and number that uploaders write."""

import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.nightscout_collections import DEVICE_STATUS, PROFILES, TREATMENTS, Collection
from nightscout_lakehouse.lib.processing import SiteProcessing, pending_batches, process_sites
from nightscout_lakehouse.lib.settings import Settings, load_settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import connect, open_warehouse

NOW = datetime(2026, 3, 15, 12, 0, tzinfo=UTC)
NOON = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
NOON_MS = int(NOON.timestamp() * 1000)
SITE = Site("anna", "http://127.0.0.1:1", timezone="Europe/Berlin")


def treatment(number: int, **fields: Any) -> dict[str, Any]:
    document = {"_id": f"{number:024x}", "eventType": "Note", "created_at": "2026-03-10T12:00:00.000Z", **fields}
    return {key: value for key, value in document.items() if value != "absent"}


def process(
    settings: Settings,
    lake: Lake,
    documents: Sequence[Any],
    number: int = 1,
    collection: Collection = TREATMENTS,
    fetched_at: datetime = NOW,
) -> SiteProcessing:
    texts = (json.dumps(document) for document in documents)
    write_batch(lake, "anna", number, documents_from_json(texts, collection), fetched_at, collection)
    (report,) = process_sites([SITE], settings, lake, collection)
    return report


def rows(settings: Settings, columns: str, where: str = "true", view: str = "treatments") -> list[tuple[Any, ...]]:
    with open_warehouse(settings) as warehouse:
        return warehouse.execute(f"select {columns} from lake.nightscout_{view} where {where} order by all").fetchall()


# What is sent, by how its time is written; all are of NOON.
TIMES: dict[str, dict[str, Any]] = {
    "UTC as the server writes it": {"created_at": "2026-03-10T12:00:00.000Z"},
    "without milliseconds": {"created_at": "2026-03-10T12:00:00Z"},
    "without seconds": {"created_at": "2026-03-10T12:00Z"},
    "with an offset": {"created_at": "2026-03-10T14:00:00+02:00"},
    "offset without colon": {"created_at": "2026-03-10T07:00:00.000-0500"},
    "offset after a blank": {"created_at": "2026-03-10T14:00:00 +0200"},
    "blank for T": {"created_at": "2026-03-10 12:00:00Z"},
    "without a zone: the site's": {"created_at": "2026-03-10T13:00:00"},
    "without a zone but utcOffset": {"created_at": "2026-03-10T14:00:00", "utcOffset": 120},
    "epoch milliseconds as text": {"created_at": str(NOON_MS)},
    "epoch milliseconds": {"created_at": NOON_MS},
    "epoch seconds as text": {"created_at": str(NOON_MS // 1000)},
    "epoch seconds": {"created_at": NOON_MS // 1000},
    "JavaScript's text": {"created_at": "Tue Mar 10 2026 14:00:00 GMT+0200 (CEST)"},
    "timestamp as text": {"created_at": "absent", "timestamp": "2026-03-10T12:00:00Z"},
    "timestamp as number": {"created_at": "absent", "timestamp": NOON_MS},
    "date of API v3": {"created_at": None, "date": NOON_MS},
    "mills": {"created_at": "", "mills": NOON_MS},
    "nonsense beside a date": {"created_at": "nonsense", "date": NOON_MS},
}
TYPED: list[tuple[dict[str, Any], str, Any]] = [
    ({"insulin": 4.5}, "insulin_units", 4.5),
    ({"insulin": "4.5"}, "insulin_units", 4.5),
    ({"insulin": ""}, "insulin_units", None),
    ({"insulin": None}, "insulin_units", None),
    ({"carbs": -10}, "carbs_g", -10.0),
    ({"carbs": 45, "protein": 20, "fat": "15"}, "[carbs_g, protein_g, fat_g]", [45.0, 20.0, 15.0]),
    ({"eventType": "Temp Basal", "absolute": 0, "rate": 0}, "rate_units_per_hour", 0.0),
    ({"eventType": "Temp Basal", "rate": 1.2}, "rate_units_per_hour", 1.2),
    ({"eventType": "Temp Basal", "percent": -100}, "rate_percent", -100.0),
    ({"duration": 29, "durationInMilliseconds": 1_770_000}, "duration_minutes", 29.5),
    ({"duration": 10, "durationInMilliseconds": 1_770_000}, "duration_minutes", 10.0),
    ({"durationInMilliseconds": 60_000}, "duration_minutes", 1.0),
    ({"duration": 0}, "duration_minutes", 0.0),
    ({"isSMB": True}, "is_automatic", True),
    ({"isSMB": False, "automatic": True}, "is_automatic", True),
    ({"type": "SMB"}, "is_automatic", True),
    ({"isSMB": False}, "is_automatic", False),
    ({}, "is_automatic", None),
    ({"splitNow": "60", "splitExt": "40", "relative": 0.8}, "[split_now_pct, split_ext_pct]", [60.0, 40.0]),
    ({"preBolus": 15}, "pre_bolus_minutes", 15.0),
    ({"profile": "Sport", "percentage": 80, "timeshift": -1}, "profile_timeshift_hours", -1.0),
    ({"targetTop": 140, "targetBottom": 130, "units": "mg/dl"}, "[target_low, target_high]", [130.0, 140.0]),
    ({"targetTop": 8, "units": "mmol"}, "target_high", 8 * 18.01559),
    # Nightscout's own form converts the targets and leaves the units as they were.
    ({"targetTop": 144.1, "units": "mmol"}, "target_high", 144.1),
    ({"targetTop": 8}, "target_high", None),
    ({"targetTop": ""}, "target_high", None),
    ({"glucose": 6.5, "units": "mmol/l"}, "glucose", 6.5 * 18.01559),
    ({"glucose": "120", "units": "mg/dl"}, "glucose", 120.0),
    ({"glucose": 120}, "glucose", 120.0),
    ({"glucose": 6.5, "units": "mg/dl"}, "glucose", None),
    ({"eventType": "  "}, "event_type", None),
    ({"eventType": "Something new"}, "event_type", "Something new"),
    ({"created_at": "2026-03-10T07:00:00-05:00"}, "utc_offset_minutes", -300),
    ({"utcOffset": 60}, "utc_offset_minutes", 60),
    ({"notes": "a\u0000b"}, "notes", "ab"),
    ({"isValid": False}, "is_deleted", True),
]
REFUSED: list[tuple[Any, str]] = [
    ({"insulin": "many"}, "insulin_not_a_number"),
    ({"insulin": "4,5"}, "insulin_not_a_number"),
    ({"insulin": -1}, "insulin_out_of_range"),
    ({"insulin": 400}, "insulin_out_of_range"),
    ({"carbs": "x"}, "carbs_not_a_number"),
    ({"carbs": 5000}, "carbs_out_of_range"),
    ({"absolute": "fast"}, "rate_not_a_number"),
    ({"absolute": 500}, "rate_out_of_range"),
    ({"duration": "long"}, "duration_not_a_number"),
    ({"duration": -5}, "duration_out_of_range"),
    ({"created_at": "yesterday"}, "unreadable_timestamp"),
    ({"created_at": "1970-01-01T00:00:00.000Z"}, "timestamp_too_old"),
    ({"created_at": "2026-03-17T00:00:00.000Z"}, "timestamp_in_future"),
    ({"_id": "absent"}, "missing_id"),
    ([1, 2], "not_a_json_object"),
]


def refused(place: int) -> Any:
    fields = REFUSED[place][0]
    return treatment(300 + place, **fields) if isinstance(fields, dict) else fields


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A lakehouse of all the cases, each with a number of its own, processed at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAKEHOUSE_HOME", str(tmp_path_factory.mktemp("cases")))
        settings = load_settings()
        documents = [treatment(100 + place, **fields) for place, fields in enumerate(TIMES.values())]
        documents += [treatment(200 + place, **fields) for place, (fields, *_) in enumerate(TYPED)]
        documents += [refused(place) for place in range(len(REFUSED))]
        report = process(settings, Lake.open(settings), documents)
        assert report.stored + report.duplicates == len(TIMES) + len(TYPED)
        assert report.quarantined == len(REFUSED)
    return settings


@pytest.mark.parametrize("name", TIMES)
def test_time_is_understood_in_every_form(cases: Settings, name: str) -> None:
    number = 100 + list(TIMES).index(name)
    found = rows(cases, "kind, month, treatment_timestamp", f"nightscout_id = '{number:024x}'")
    assert found == [("treatment", "2026-03", NOON)]


@pytest.mark.parametrize("place", range(len(TYPED)), ids=lambda place: f"{TYPED[place]}")
def test_fields_are_typed(cases: Settings, place: int) -> None:
    fields, column, expected = TYPED[place]
    number = 200 + place
    ((kind, value, document),) = rows(cases, f"kind, {column}, document", f"nightscout_id = '{number:024x}'")
    assert kind == "treatment"
    assert value == expected
    assert json.loads(document) == treatment(number, **fields)


@pytest.mark.parametrize("place", range(len(REFUSED)), ids=lambda place: f"{REFUSED[place]}")
def test_what_is_refused_is_kept_with_its_reason(cases: Settings, place: int) -> None:
    found = rows(cases, "kind, quarantine_reason", f"document = '{json.dumps(refused(place))}'")
    assert found == [("quarantined", REFUSED[place][1])]


def test_carbohydrates_of_a_pre_bolus_may_lie_ahead(settings: Settings, lake: Lake) -> None:
    process(settings, lake, [treatment(1, created_at="2026-03-15T12:30:00.000Z", carbs=30)])
    assert rows(settings, "kind") == [("treatment",)]


def test_one_event_in_two_documents_counts_once(settings: Settings, lake: Lake) -> None:
    bolus = {"eventType": "Meal Bolus", "insulin": 4.5, "carbs": 45}
    report = process(
        settings,
        lake,
        [
            treatment(1, **bolus),
            treatment(2, **bolus, notes="the same, sent by another app", created_at="2026-03-10T13:00:00+01:00"),
            treatment(3, **{**bolus, "insulin": 4.6}),
            treatment(4, **bolus, created_at="2026-03-10T12:00:01.000Z"),
            treatment(5, notes="a"),
            treatment(6, notes="b"),
            treatment(7, notes="b"),
        ],
    )
    assert (report.documents, report.stored, report.duplicates) == (7, 5, 2)
    # The one that the server showed first, the newest, is the last of its batch: the file begins with the oldest.
    assert rows(settings, "nightscout_id[-1:]", "is_duplicate") == [("2",), ("7",)]
    # Should the one that counts be deleted, the other takes its place.
    process(settings, lake, [treatment(1, **bolus, isValid=False)], number=2)
    assert rows(settings, "nightscout_id[-1:], is_duplicate", "insulin_units = 4.5 and not is_deleted") == [
        ("2", False),
        ("4", False),
    ]


def test_an_edit_that_moves_a_treatment_to_another_month_leaves_nothing_behind(settings: Settings, lake: Lake) -> None:
    process(settings, lake, [treatment(1, insulin=1)])
    process(settings, lake, [treatment(1, insulin=2, created_at="2026-02-03T12:00:00.000Z")], number=2)
    assert rows(settings, "month, insulin_units") == [("2026-02", 2.0)]
    assert changed_days(settings) == ["2026-02-03", "2026-03-10", "2026-03-10"]


def changed_days(settings: Settings) -> list[str]:
    with open_warehouse(settings) as warehouse:
        found = warehouse.execute("select reading_date::varchar from ops.changes order by 1").fetchall()
    return [row[0] for row in found]


def test_the_days_that_a_treatment_has_effect_on_are_marked(settings: Settings, lake: Lake) -> None:
    process(settings, lake, [treatment(1, created_at="2026-03-10T22:30:00.000Z", duration=60 * 26, absolute=0.5)])
    # Berlin is an hour ahead: it begins on the 10th at 23:30 and runs into the 12th.
    assert changed_days(settings) == ["2026-03-10", "2026-03-11", "2026-03-12"]


def test_a_profile_switch_has_effect_until_today(settings: Settings, lake: Lake) -> None:
    process(settings, lake, [treatment(1, eventType="Profile Switch", profile="Sport")])
    days = changed_days(settings)
    until = max(NOON, datetime.now(UTC)).astimezone(ZoneInfo("Europe/Berlin")).date()
    assert (days[0], days[-1]) == ("2026-03-10", until.isoformat())
    assert len(days) == len(set(days)) == (until - NOON.date()).days + 1


def test_what_changes_nothing_marks_no_day(settings: Settings, lake: Lake) -> None:
    process(settings, lake, [treatment(1, insulin=1)])
    before = changed_days(settings)
    report = process(settings, lake, [treatment(1, insulin=1)], number=2)
    assert (report.duplicates, report.days_changed) == (1, 0)
    assert changed_days(settings) == before


def test_batch_by_batch_and_all_at_once_give_the_same(
    settings: Settings, lake: Lake, tmp_path_factory: pytest.TempPathFactory
) -> None:
    chance = random.Random(5)
    times = ["2026-03-10T12:00:00.000Z", "2026-03-31T23:30:00Z", "2026-04-01T00:30:00+02:00", str(NOON_MS), "nonsense"]
    batches = [
        [
            treatment(
                chance.randrange(12),
                created_at=chance.choice(times),
                insulin=chance.choice([1, "2", None, "x"]),
                isValid=chance.choice([True, True, False]),
            )
            for _ in range(10)
        ]
        for _ in range(8)
    ]
    late = datetime(2026, 5, 1, tzinfo=UTC)
    for number, documents in enumerate(batches, 1):
        process(settings, lake, documents, number, fetched_at=late)
    compared = ", ".join(["kind", "month", *TREATMENTS.columns])
    by_batch = rows(settings, compared)
    other = settings.model_copy(update={"home": tmp_path_factory.mktemp("other")})
    other_lake = Lake.open(other)
    for number, documents in enumerate(batches, 1):
        texts = (json.dumps(document) for document in documents)
        write_batch(other_lake, "anna", number, documents_from_json(texts, TREATMENTS), late, TREATMENTS)
    process_sites([SITE], other, other_lake, TREATMENTS)
    assert rows(other, compared) == by_batch
    with open_warehouse(settings) as warehouse:
        assert warehouse.execute(
            "select count(*), bool_and(documents = stored + duplicates + quarantined) from ops.batches"
            " where collection = 'nightscout_treatments'"
        ).fetchall() == [(8, True)]


def test_a_run_killed_before_its_state_is_made_good(
    settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    process(settings, lake, [treatment(1, insulin=1)])

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Lake, "write_json", dies)
        with pytest.raises(KeyboardInterrupt):
            process(settings, lake, [treatment(1, insulin=2), treatment(2, insulin="x")], number=2)
    assert pending_batches(lake, "anna", TREATMENTS) == [2]
    assert pending_batches(lake, "anna") == []
    process_sites([SITE], settings, lake, TREATMENTS)
    assert rows(settings, "kind, insulin_units") == [("quarantined", None), ("treatment", 2.0)]


OPENAPS = {
    "_id": "a" * 24,
    "device": "openaps://AndroidAPS",
    "created_at": "2026-03-10T12:00:00.000Z",
    "openaps": {
        "iob": [{"iob": 1.25, "basaliob": 0.25}],
        "suggested": {"bg": 150, "eventualBG": 90, "COB": 12, "insulinReq": 0.3, "targetBG": 100},
        "enacted": {
            "bg": 150,
            "eventualBG": 95,
            "COB": 12.5,
            "rate": 0.5,
            "duration": 30,
            "units": 0.1,
            "recieved": True,
            "predBGs": {"IOB": [150, 140], "COB": [150, 155]},
        },
    },
    "pump": {"reservoir": 101.5, "battery": {"percent": 87, "voltage": 1.4}, "status": {"status": "normal"}},
    "uploader": {"battery": 77},
}
LOOP = {
    "_id": "b" * 24,
    "device": "loop://iPhone",
    "created_at": "2026-03-10T12:05:00Z",
    "loop": {
        "iob": {"iob": 2},
        "cob": {"cob": 20},
        "predicted": {"startDate": "2026-03-10T12:05:00Z", "values": [100, 110, 130.5]},
        "recommendedBolus": 0.4,
        "enacted": {"rate": 1.1, "duration": 30, "received": False, "bolusVolume": 0.05},
        "failureReason": "no data",
    },
    "pump": {"suspended": True, "reservoir": 50},
    "uploaderBattery": 55,
}


def test_device_status_of_both_families_is_typed(settings: Settings, lake: Lake) -> None:
    report = process(settings, lake, [OPENAPS, LOOP, {**LOOP, "_id": "c" * 24, "created_at": "?"}], 1, DEVICE_STATUS)
    assert (report.stored, report.quarantined) == (2, 1)
    columns = (
        "loop_system, iob_units, basal_iob_units, cob_g, glucose_mg_dl, eventual_glucose_mg_dl, target_glucose_mg_dl,"
        " loop_recommended_bolus_units, insulin_required_units, enacted_bolus_units, temp_basal_rate_units_per_hour,"
        " temp_basal_duration_minutes, is_closed_loop, predicted_glucose_mg_dl, failure_reason, pump_reservoir_units,"
        " pump_battery_pct, pump_battery_volts, pump_status, is_pump_suspended, uploader_battery_pct, document"
    )
    loop, openaps = rows(settings, columns, "kind = 'device_status'", "device_status")
    assert openaps == (
        *("openaps", 1.25, 0.25, 12.5, 150.0, 95.0, 100.0, None, 0.3, 0.1, 0.5, 30.0, True, [150.0, 155.0], None),
        *(101.5, 87.0, 1.4, "normal", None, 77.0, None),
    )
    assert loop == (
        *("loop", 2.0, None, 20.0, None, 130.5, None, 0.4, None, 0.05, 1.1, 30.0, False, [100.0, 110.0, 130.5]),
        *("no data", 50.0, None, None, None, True, 55.0, None),
    )


def test_two_states_of_one_moment_are_both_kept(settings: Settings, lake: Lake) -> None:
    loop = {key: value for key, value in LOOP.items() if key != "pump"}
    pump = {"_id": "d" * 24, "device": LOOP["device"], "created_at": LOOP["created_at"], "pump": {"reservoir": 50}}
    report = process(settings, lake, [loop, pump, {**pump, "_id": "e" * 24}], 1, DEVICE_STATUS)
    assert (report.stored, report.duplicates) == (2, 1)


def test_profiles_are_rows_with_the_schedules_of_the_default_one(settings: Settings, lake: Lake) -> None:
    basal = [{"time": "00:00", "value": 0.8, "timeAsSeconds": 0}]
    profile = {
        "_id": "f" * 24,
        "startDate": "2026-03-10T12:00:00.000Z",
        "created_at": "2026-03-11T12:00:00.000Z",
        "defaultProfile": 'My "day" 1.5',
        "store": {
            'My "day" 1.5': {"dia": "5", "basal": basal, "timezone": "Europe/Berlin", "units": "mmol"},
            "Night": {"basal": []},
        },
    }
    report = process(settings, lake, [profile, {**profile, "_id": "0" * 24, "store": None}], 1, PROFILES)
    assert (report.stored, report.quarantined) == (1, 1)
    ((name, zone, units, dia, schedule, starts, created),) = rows(
        settings,
        "default_profile_name, timezone, units, insulin_action_hours, basal_schedule, profile_timestamp,"
        " created_timestamp",
        "kind = 'profile'",
        "profiles",
    )
    assert (name, zone, units, dia, starts) == ('My "day" 1.5', "Europe/Berlin", "mmol", 5.0, NOON)
    assert created == datetime(2026, 3, 11, 12, tzinfo=UTC)
    assert json.loads(schedule) == basal
    ((store,),) = rows(settings, "store", "kind = 'profile'", "profiles")
    assert json.loads(store) == profile["store"]


NASTY = [
    *(
        None,
        True,
        0,
        -1,
        1e308,
        -1e308,
        2**63,
        10**400,
        0.1,
        "",
        " ",
        "x",
        "$",
        "/",
        "\\",
        '"',
        "a'b",
        "NaN",
        "-inf",
        "1e999",
    ),
    *("\ud800", "\u0000", "9999-12-31T23:59:59Z", "0000-00-00", "2026-03-10T12:00:00+99:99", "1" * 40, [], [1, "x"]),
    *({}, {"a": {"b": None}}, {"\\": 1, "$.": {}}, [[[]]], "2026-03-10T12:00:00.000Z", "290000-01-01", "mmol"),
]
FIELDS = {
    TREATMENTS.name: (
        *(
            "created_at",
            "date",
            "mills",
            "timestamp",
            "utcOffset",
            "eventType",
            "insulin",
            "carbs",
            "duration",
            "units",
        ),
        *("durationInMilliseconds", "absolute", "percent", "targetTop", "glucose", "isSMB", "notes", "isValid"),
    ),
    DEVICE_STATUS.name: ("created_at", "utcOffset", "device", "openaps", "loop", "pump", "uploader", "uploaderBattery"),
    PROFILES.name: ("startDate", "created_at", "defaultProfile", "store", "units", "isValid"),
}


@pytest.mark.parametrize("collection", [TREATMENTS, DEVICE_STATUS, PROFILES], ids=lambda c: c.name)
def test_nothing_that_a_document_holds_stops_the_others(settings: Settings, lake: Lake, collection: Collection) -> None:
    chance = random.Random(3)
    documents = []
    for number in range(1500):
        fields = {field: chance.choice(NASTY) for field in FIELDS[collection.name] if chance.random() < 0.5}
        time = {"created_at": "2026-03-10T12:00:00.000Z"} if chance.random() < 0.7 else {}
        deeper = {
            key: {inner: chance.choice(NASTY) for inner in ("iob", "enacted", "suggested", "predicted", "status", "x")}
            for key in ("openaps", "loop", "pump", "store")
            if chance.random() < 0.3
        }
        documents.append({"_id": f"{number:024x}", **deeper, **fields, **time})
    report = process(settings, lake, documents, 1, collection)
    assert report.documents == 1500 == report.stored + report.duplicates + report.quarantined
    view = collection.name.removeprefix("nightscout_")
    assert rows(settings, "count(*)", "true", view) == [(1500,)]


def test_a_warehouse_from_before_the_collections_keeps_its_accounting(settings: Settings, lake: Lake) -> None:
    with connect(settings, settings.warehouse_path) as old:
        old.execute("create schema ops")
        # The interval of every sensor had to be known; anna's is not.
        old.execute(
            "create table ops.sites (site varchar primary key, timezone varchar not null, timezone_source varchar"
            " not null, sensor_interval_minutes double not null, updated_at timestamptz not null)"
        )
        old.execute(
            "create table ops.batches (site varchar, batch bigint, documents bigint, stored bigint, duplicates bigint,"
            " quarantined bigint, deletions bigint, processed_at timestamptz, primary key (site, batch))"
        )
        old.execute("insert into ops.batches values ('anna', 1, 10, 8, 1, 1, 0, now())")
    process(settings, lake, [treatment(1)])
    process_sites([SITE], settings, lake, TREATMENTS)
    with open_warehouse(settings) as warehouse:
        found = warehouse.execute("select collection, site, batch, documents from ops.batches order by all").fetchall()
        sites = warehouse.execute("select site, sensor_interval_minutes from ops.sites").fetchall()
    assert sites == [("anna", None)]
    assert found == [("nightscout_entries", "anna", 1, 10), ("nightscout_treatments", "anna", 1, 1)]
