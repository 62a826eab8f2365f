"""Faults, injected one by one, and what catches each: the table of docs/reference/faults.md, row by row."""

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.quality.anomalies import find_anomalies
from nightscout_lakehouse.lib.quality.stages import Stage, StageResult, validate_stage
from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT, Settings, load_settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import connect, open_warehouse

# On the fourth of each five minutes: a second uploader's copy of a reading, seconds later, is of the same day.
NOW = datetime.fromtimestamp(time.time() // 300 * 300 - 60, UTC)
# What is validated, and what the search for anomalies reads.
MODELS = ["+dim_site", "+fact_sensor_gaps"]

Document = dict[str, Any]


def documents(count: int = 60, every_minutes: int = 15) -> list[Document]:
    """Plausible readings up to now, oldest first; without a fault they meet every expectation."""
    made = []
    for number in range(count):
        moment = NOW - timedelta(minutes=every_minutes * (count - 1 - number))
        made.append(
            {
                "_id": f"{number:024x}",
                "type": "sgv",
                "sgv": round(140 + 45 * math.sin(number / 7) + 12 * math.sin(number / 1.7)),
                "date": int(moment.timestamp() * 1000),
                "dateString": moment.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
                "utcOffset": 0,
                "device": "sensor",
                "direction": "Flat",
            }
        )
    return made


FIVE_WEEKS = 96 * 35


def of_each(change: Callable[[Document], object], share: float = 1.0) -> Callable[[], list[str]]:
    """Documents of which a share, the newest, is changed."""

    def make() -> list[str]:
        made = documents()
        for document in made[int(len(made) * (1 - share)) :]:
            change(document)
        return [json.dumps(document) for document in made]

    return make


def of_one(change: Callable[[Document], object]) -> Callable[[], list[str]]:
    """Documents of which one, in the middle, is changed."""

    def make() -> list[str]:
        made = documents()
        change(made[30])
        return [json.dumps(document) for document in made]

    return make


def renamed(old: str, new: str) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        document[new] = document.pop(old)

    return change


def second_uploader() -> list[str]:
    made = documents(96, 5)
    copies = [
        document | {"_id": f"{number + 1000:024x}", "device": "uploader", "date": document["date"] + 20_000}
        for number, document in enumerate(made[:-1])
    ]
    return [json.dumps(document) for document in [*made, *copies]]


def sent_again() -> list[str]:
    made = documents()
    return [json.dumps(d) for d in [*made, *(d | {"_id": f"{n + 1000:024x}"} for n, d in enumerate(made))]]


def history(change: Callable[[list[Document]], list[Document]]) -> Callable[[], list[str]]:
    return lambda: [json.dumps(document) for document in change(documents(FIVE_WEEKS))]


def frozen(made: list[Document]) -> list[Document]:
    return [*made[:-16], *(document | {"sgv": 111} for document in made[-16:])]


def half_a_day_missing(made: list[Document]) -> list[Document]:
    return [*made[:-60], *made[-8:]]


def drifted(made: list[Document]) -> list[Document]:
    return [*made[:-96], *(document | {"sgv": document["sgv"] + 110} for document in made[-96:])]


def very_low(made: list[Document]) -> list[Document]:
    return [document | {"sgv": document["sgv"] // 2} for document in made]


def two_in_one(made: list[Document]) -> list[Document]:
    recent = made[-96:]
    return [
        document | {"sgv": 330 if n % 2 else 45, "date": document["date"] - (13 * 60_000 if n % 2 else 0)}
        for n, document in enumerate(recent)
    ]


@dataclass(frozen=True)
class Sent:
    """Documents with a fault, and what has to come of it.

    Attributes:
        fault: Name in the table of the docs.
        make: The documents as JSON texts.
        quarantined: How many are refused, by reason.
        warns: Expectations that are not met and do not stop anything.
        stops: Expectations that stop what is downstream.
        unusual: Checks for what is unusual that find something.
        counts: Readings that count in the end.
    """

    fault: str
    make: Callable[[], list[str]]
    quarantined: dict[str, int]
    warns: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    unusual: tuple[str, ...] = ()
    counts: int = 60


SENT = [
    Sent("none", of_one(lambda d: None), {}),
    Sent("value null", of_one(lambda d: d.update(sgv=None)), {"missing_glucose": 1}, counts=59),
    Sent("value negative", of_one(lambda d: d.update(sgv=-5)), {"glucose_out_of_range": 1}, counts=59),
    Sent("value above 600", of_one(lambda d: d.update(sgv=6000)), {"glucose_out_of_range": 1}, counts=59),
    Sent("sensor error code", of_one(lambda d: d.update(sgv=5)), {"sensor_error_code": 1}, counts=59),
    Sent("HIGH in place of a value", of_one(lambda d: d.update(sgv="HIGH")), {"glucose_sentinel": 1}, counts=59),
    Sent("text in place of a value", of_one(lambda d: d.update(sgv="?")), {"glucose_not_a_number": 1}, counts=59),
    Sent(
        "values turned to text",
        of_each(lambda d: d.update(sgv=str(d["sgv"]))),
        {},
        warns=("sgv_is_a_number",),
    ),
    Sent(
        "mmol/L sent as mg/dL",
        of_each(lambda d: d.update(sgv=round(d["sgv"] / 18, 1))),
        {"sensor_error_code": 60},
        stops=("values_are_in_mg_dl",),
        counts=0,
    ),
    Sent(
        "value field renamed",
        of_each(renamed("sgv", "glucose")),
        {"missing_glucose": 60},
        stops=("documents_have_a_value",),
        counts=0,
    ),
    Sent(
        "time fields renamed",
        of_each(lambda d: (renamed("date", "when")(d), d.pop("dateString"))),
        {"unreadable_timestamp": 60},
        stops=("documents_have_a_time",),
        warns=("fields_are_known",),
        counts=0,
    ),
    Sent(
        "one document without a time",
        of_one(lambda d: (d.pop("date"), d.pop("dateString"))),
        {"unreadable_timestamp": 1},
        counts=59,
    ),
    Sent("date turned to text", of_each(lambda d: d.update(date=str(d["date"]))), {}, warns=("date_is_a_number",)),
    Sent(
        "date in 2099",
        of_one(lambda d: d.update(date=4_070_908_800_000)),
        {"timestamp_in_future": 1},
        counts=59,
    ),
    Sent("date in 1970", of_one(lambda d: d.update(date=0)), {"timestamp_too_old": 1}, counts=59),
    Sent(
        "uploader's clock two hours fast",
        of_each(lambda d: d.update(date=d["date"] + 7_200_000), share=0.5),
        {"timestamp_in_future": 7},
        warns=("dates_are_not_in_the_future",),
        counts=53,
    ),
    Sent(
        "time zone offset in hours sent as seconds",
        of_each(lambda d: d.update(utcOffset=7200)),
        {},
        warns=("utc_offset_is_in_minutes",),
    ),
    Sent("two uploaders for one sensor", second_uploader, {}, warns=("few_readings_come_twice",), counts=96),
    Sent("the same readings under new ids", sent_again, {}),
    Sent(
        "no JSON object",
        lambda: [*of_one(lambda d: None)(), "null", '["a list"]'],
        {"not_a_json_object": 2},
    ),
    Sent(
        "half a character in a text",
        lambda: [text.replace("Flat", "\\ud83d") if n == 30 else text for n, text in enumerate(of_each(id)())],
        {"not_a_json_object": 1},
        counts=59,
    ),
    Sent(
        "documents without ids",
        of_each(lambda d: d.pop("_id")),
        {"missing_id": 60},
        stops=("documents_have_an_id",),
        counts=0,
    ),
    Sent(
        "new type of entry",
        of_each(lambda d: d.update(type="ketone"), share=0.5),
        {"unknown_type": 30},
        warns=("types_are_known",),
        unusual=("readings_are_fresh",),
        counts=30,
    ),
    Sent(
        "new field in every document",
        of_each(lambda d: d.update(sensorTemperature=34.1)),
        {},
        warns=("fields_are_known",),
    ),
    Sent("frozen sensor", history(frozen), {}, unusual=("no_stuck_sensor",), counts=FIVE_WEEKS),
    Sent(
        "half a day missing",
        history(half_a_day_missing),
        {},
        unusual=("volume_is_as_usual", "no_long_sensor_gap"),
        counts=FIVE_WEEKS - 52,
    ),
    Sent("drifting sensor", history(drifted), {}, unusual=("daily_mean_does_not_drift",), counts=FIVE_WEEKS),
    Sent(
        "mean of two weeks not plausible",
        history(very_low),
        {},
        warns=("mean_glucose_is_plausible",),
        counts=FIVE_WEEKS,
    ),
    Sent(
        "two sensors in one stream",
        history(two_in_one),
        {},
        warns=("changes_are_physiological",),
        counts=96,
    ),
]


def test_a_few_odd_documents_stop_nobody(settings: Settings, lake: Lake) -> None:
    """A sensor that sends error codes for an hour, beside a site with many sound documents."""
    codes = [document | {"sgv": code} for document, code in zip(documents(30), [5, 9, 10] * 10, strict=True)]
    odd = [document | {"sgv": 5.5} for document in documents(3)]
    for name, made in (("codes", codes), ("odd", odd), ("sound", documents(500))):
        write_batch(lake, name, 1, documents_from_json([json.dumps(d) for d in made]), NOW)
    sites = [Site(name, "http://127.0.0.1:1", timezone="UTC") for name in ("codes", "odd", "sound")]
    result = validate_stage("raw", settings, lake, sites)
    assert result.blocking == ()
    (units,) = [o for o in result.outcomes if o.expectation.name == "values_are_in_mg_dl"]
    assert (units.is_met, units.severity, units.failing_sites) == (False, "warning", ("odd",))


@dataclass(frozen=True)
class Tampered:
    """A fault of our own making, put into a table.

    Attributes:
        fault: Name in the table of the docs.
        statement: What is done to the warehouse, for the site `tampered`.
        stage: Which stage has to find it.
        stops: Expectations that stop what is downstream.
    """

    fault: str
    statement: str
    stage: Stage
    stops: tuple[str, ...]


_INT = "intermediate.int_glucose_enriched"
_DAY = "curated.dim_glucose_date"
_FACT = "curated.fact_glucose_readings"

TAMPERED = [
    Tampered(
        "a reading twice in a model",
        f"insert into {_INT} from {_INT} where site = 'tampered' limit 1",
        "enriched",
        ("entry_id_is_unique",),
    ),
    Tampered(
        "values lost in a model",
        f"update {_INT} set glucose_mg_dl = null where site = 'tampered' and hour_of_day = 3",
        "enriched",
        ("glucose_is_there", "category_follows_from_the_value"),
    ),
    Tampered(
        "another unit in a model",
        f"update {_INT} set glucose_mg_dl = glucose_mg_dl / 18 where site = 'tampered'",
        "enriched",
        ("glucose_is_plausible", "category_follows_from_the_value"),
    ),
    Tampered(
        "a shifted bound of a category",
        f"update {_INT} set glucose_category = 'in_range' where site = 'tampered' and glucose_mg_dl > 180",
        "enriched",
        ("category_follows_from_the_value",),
    ),
    Tampered(
        "a reading of tomorrow in a model",
        f"update {_INT} set reading_timestamp = now() + interval 1 day where site = 'tampered' and hour_of_day = 3",
        "enriched",
        ("readings_are_not_in_the_future",),
    ),
    Tampered(
        "readings lost on the way to the fact table",
        f"delete from {_FACT} where site = 'tampered' and hour_of_day = 3",
        "marts",
        ("readings_reach_the_fact_table", "days_count_what_the_fact_table_holds"),
    ),
    Tampered(
        "shares that do not add up",
        f"update {_DAY} set time_high_pct = time_high_pct + 1 where site = 'tampered'",
        "marts",
        ("ranges_add_up_to_100",),
    ),
    Tampered(
        "a share above 100",
        f"update {_DAY} set time_in_range_pct = 130, time_high_pct = -30 - time_low_pct - time_very_low_pct"
        " - time_very_high_pct where site = 'tampered'",
        "marts",
        ("time_in_range_is_a_share",),
    ),
    Tampered(
        "GMI that does not follow from the mean",
        f"update {_DAY} set estimated_a1c_pct = estimated_a1c_pct + 0.1 where site = 'tampered'",
        "marts",
        ("gmi_follows_from_the_mean",),
    ),
    Tampered(
        "a day lost",
        f"delete from {_DAY} where site = 'tampered' and reading_date = (select reading_date from {_DAY} "
        "where site = 'tampered' order by reading_date offset 2 limit 1)",
        "marts",
        ("missing_days_have_a_gap_record", "days_count_what_the_fact_table_holds"),
    ),
]


@dataclass(frozen=True)
class Run:
    """One lakehouse in which every site has one fault."""

    raw: dict[str, StageResult]
    enriched: dict[str, StageResult]
    reasons: dict[str, dict[str, int]]
    counts: dict[str, int]
    unusual: dict[str, set[str]]


def site(number: int) -> Site:
    return Site(f"site-{number:02d}", "http://127.0.0.1:1", timezone="UTC")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAKEHOUSE_HOME", str(tmp_path_factory.mktemp("faults")))
        settings = load_settings()
        lake = Lake.open(settings)
        sites = [site(number) for number in range(len(SENT))]
        raw, enriched = {}, {}
        for one, sent in zip(sites, SENT, strict=True):
            write_batch(lake, one.name, 1, documents_from_json(sent.make()), NOW)
            raw[sent.fault] = validate_stage("raw", settings, lake, [one])
        # What a stage stops is let through here, to see that the next guard stands too.
        process_sites(sites, settings, lake)
        DbtProject(settings).build("duckdb", MODELS, data_tests=False)
        validate_stage("enriched", settings, lake, sites)
        for one, sent in zip(sites, SENT, strict=True):
            with open_warehouse(settings) as warehouse:
                warehouse.execute("insert into ops.changes (site, reading_date) values (?, null)", [one.name])
                # As after a build: what a model has not taken in counts as not validated.
                warehouse.execute(
                    "update ops.watermarks set change_seq = (select max(change_seq) from ops.changes)"
                    " where consumer = 'int_glucose_enriched'"
                )
            enriched[sent.fault] = validate_stage("enriched", settings, lake, sites)
        with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
            refused = warehouse.execute(
                "select site, quarantine_reason, count(*) from lake.nightscout_entries"
                " where kind = 'quarantined' group by all"
            ).fetchall()
            counts = dict(warehouse.execute(f"select site, count(*) from {_FACT} group by site").fetchall())
            anomalies = find_anomalies(warehouse, NOW, 60)
        unusual: dict[str, set[str]] = {one.name: set() for one in sites}
        for check, found in anomalies.items():
            for anomaly in found:
                unusual[anomaly.site].add(check)
        reasons: dict[str, dict[str, int]] = {one.name: {} for one in sites}
        for name, reason, number in refused:
            reasons[name][reason] = number
        yield Run(raw, enriched, reasons, counts, unusual)


@pytest.mark.parametrize(("number", "sent"), list(enumerate(SENT)), ids=[sent.fault for sent in SENT])
def test_what_is_sent_is_caught(number: int, sent: Sent, run: Run) -> None:
    name = site(number).name
    assert run.reasons[name] == sent.quarantined
    assert run.counts.get(name, 0) == sent.counts
    outcomes = [*run.raw[sent.fault].outcomes, *run.enriched[sent.fault].outcomes]
    assert {o.expectation.name for o in outcomes if o.is_blocking} == set(sent.stops)
    assert {o.expectation.name for o in outcomes if not o.is_met and not o.is_blocking} == set(sent.warns)
    assert run.unusual[name] == set(sent.unusual)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A lakehouse with a week of one site, `tampered`, that meets everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAKEHOUSE_HOME", str(tmp_path_factory.mktemp("sound")))
        settings = load_settings()
        lake = Lake.open(settings)
        one = Site("tampered", "http://127.0.0.1:1", timezone="UTC")
        texts = [json.dumps(document) for document in documents(96 * 7)]
        write_batch(lake, "tampered", 1, documents_from_json(texts), NOW)
        process_sites([one], settings, lake)
        DbtProject(settings).build("duckdb", MODELS, data_tests=False)
        for stage in ("enriched", "marts"):
            result = validate_stage(stage, settings, lake, [one], everything=True)
            assert [o.expectation.name for o in result.outcomes if not o.is_met] == []
            assert result.rows > 0
        yield settings


@pytest.mark.parametrize("tampered", TAMPERED, ids=[tampered.fault for tampered in TAMPERED])
def test_what_goes_wrong_inside_is_caught(tampered: Tampered, sound: Settings) -> None:
    path = sound.warehouse_path
    kept = path.read_bytes()
    try:
        with open_warehouse(sound) as warehouse:
            warehouse.execute(tampered.statement)
        found = validate_stage(tampered.stage, sound, Lake.open(sound), [], everything=True)
        assert {o.expectation.name for o in found.blocking} == set(tampered.stops)
        assert found.blocking[0].failed
    finally:
        path.write_bytes(kept)


def test_the_docs_name_every_fault() -> None:
    table = (REPOSITORY_ROOT / "docs" / "reference" / "faults.md").read_text()
    named = set(re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE)) - {"fault", "---"}
    injected = {sent.fault for sent in SENT if sent.fault != "none"} | {tampered.fault for tampered in TAMPERED}
    assert named == injected
    assert len(injected) >= 25


def test_what_failed_stays_in_view_until_it_is_mended(settings: Settings, lake: Lake, tmp_path: Path) -> None:
    one = Site("anna", "http://127.0.0.1:1", timezone="UTC")
    project = DbtProject(settings)

    def arrive(number: int, made: list[Document]) -> None:
        write_batch(lake, "anna", number, documents_from_json([json.dumps(d) for d in made]), NOW)
        process_sites([one], settings, lake)
        project.build("duckdb", ["+int_glucose_enriched"], data_tests=False)

    arrive(1, documents(96 * 3))
    with open_warehouse(settings) as warehouse:
        warehouse.execute(f"update {_INT} set glucose_category = 'in_range' where glucose_mg_dl > 180")
    assert validate_stage("enriched", settings, lake, [one]).blocking
    # A tick later something else has come; the days that failed are still looked at.
    arrive(2, [documents(1)[0] | {"_id": "f" * 24, "date": documents(1)[0]["date"] - 600_000}])
    assert validate_stage("enriched", settings, lake, [one]).blocking
    project.build("duckdb", ["+int_glucose_enriched"], full_refresh=True, data_tests=False)
    assert not validate_stage("enriched", settings, lake, [one]).blocking
    nothing_new = validate_stage("enriched", settings, lake, [one])
    assert nothing_new.rows == 0
