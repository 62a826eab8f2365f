"""Episodes and gaps against a plain state machine over random series, and the flags against a plan that is known."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nightscout_lakehouse.demo.person import Person, _plan
from nightscout_lakehouse.demo.therapy import Therapy
from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake
from nightscout_lakehouse.lib.nightscout_client import documents_from_json
from nightscout_lakehouse.lib.nightscout_collections import ENTRIES, TREATMENTS
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import connect

MODELS = ["+fact_glucose_episodes", "+fact_sensor_gaps"]
FETCHED_AT = datetime(2026, 11, 20, tzinfo=UTC)
# Some hours before the end of summer time in Berlin.
START = datetime(2026, 10, 24, 18, 0, tzinfo=UTC)
INTERVALS = {"one": 1.0, "three": 3.0, "five": 5.0, "five-more": 5.0, "fifteen": 15.0, "fifteen-more": 15.0}
SITES = [
    Site(name, "http://127.0.0.1:1", timezone="Europe/Berlin", sensor_interval_minutes=interval)
    for name, interval in INTERVALS.items()
]
LEVELS = {
    ("hypoglycemia", 1): (70.0, -1),
    ("hypoglycemia", 2): (54.0, -1),
    ("hyperglycemia", 1): (180.0, 1),
    ("hyperglycemia", 2): (250.0, 1),
}


@dataclass(frozen=True)
class Reading:
    """Minutes since the start, and mg/dL."""

    minute: float
    glucose: float


@dataclass(frozen=True)
class Episode:
    """What the fact table says of an episode; times in minutes since the start."""

    kind: str
    level: int
    start: float
    end: float | None
    duration: float
    extreme: float
    extreme_at: float
    area: float
    recovery: float | None
    count: int
    is_open: bool
    is_cut_at_start: bool
    is_cut_at_end: bool
    has_gap: bool
    is_prolonged: tuple[bool, bool]


def expected_episodes(readings: Sequence[Reading], interval: float) -> list[Episode]:
    """The definition, followed reading by reading."""
    stretches: list[list[Reading]] = []
    for reading in readings:
        if stretches and reading.minute - stretches[-1][-1].minute <= 45:
            stretches[-1].append(reading)
        else:
            stretches.append([reading])
    return [
        episode
        for kind, level in LEVELS
        for stretch in stretches
        for episode in _of_stretch(stretch, kind, level, interval, is_newest=stretch is stretches[-1])
    ]


def _of_stretch(
    stretch: Sequence[Reading], kind: str, level: int, interval: float, *, is_newest: bool
) -> Iterator[Episode]:
    bound, sign = LEVELS[kind, level]
    first_bound = LEVELS[kind, 1][0]
    is_beyond = [sign * (reading.glucose - bound) > 0 for reading in stretch]
    is_back = [sign * (reading.glucose - first_bound) <= 0 for reading in stretch]
    position = 0
    while position < len(stretch):
        if not _lasts(stretch, is_beyond, position, 15, interval):
            position += 1
            continue
        begun = position
        # The earliest reading from which all are back for long enough.
        ended = next(
            (
                later
                for later in range(begun, len(stretch))
                if is_back[later] and not is_back[later - 1] and _lasts(stretch, is_back, later, 15, interval)
            ),
            None,
        )
        inside = stretch[begun:ended]
        extreme = (min if sign < 0 else max)(reading.glucose for reading in inside)
        extreme_at = next(reading.minute for reading in inside if reading.glucose == extreme)
        with_end = stretch[begun : None if ended is None else ended + 1]
        depth = [max(0.0, sign * (reading.glucose - bound)) for reading in with_end]
        area = sum(
            (depth[n] + depth[n + 1]) / 2 * (with_end[n + 1].minute - with_end[n].minute) for n in range(len(depth) - 1)
        )
        known_until = inside[-1].minute + interval
        is_open = ended is None and is_newest
        end = stretch[ended].minute if ended is not None else None if is_open else known_until
        distances = [later.minute - earlier.minute for earlier, later in pairwise(with_end)]
        cut_at_end = ended is None and not is_newest
        yield Episode(
            kind,
            level,
            inside[0].minute,
            end,
            (known_until if end is None else end) - inside[0].minute,
            extreme,
            extreme_at,
            area,
            None if ended is None else stretch[ended].minute - extreme_at,
            len(inside),
            is_open,
            begun == 0,
            cut_at_end,
            begun == 0 or cut_at_end or any(distance > 2 * interval for distance in distances),
            (
                _is_prolonged(stretch, begun, begun + len(inside), kind, 1, interval),
                _is_prolonged(stretch, begun, begun + len(inside), kind, 2, interval),
            ),
        )
        position = len(stretch) if ended is None else ended


def _lasts(stretch: Sequence[Reading], holds: Sequence[bool], position: int, minutes: float, interval: float) -> bool:
    """Whether it holds from here on for as many minutes, each reading standing for its interval."""
    last = position - 1
    while last + 1 < len(holds) and holds[last + 1]:
        last += 1
    if last < position:
        return False
    readings_needed = math.ceil(minutes / interval)
    return stretch[last].minute - stretch[position].minute >= (readings_needed - 1) * interval - interval / 2


def _is_prolonged(stretch: Sequence[Reading], begun: int, ended: int, kind: str, level: int, interval: float) -> bool:
    bound, sign = LEVELS[kind, level]
    holds = [sign * (reading.glucose - bound) > 0 for reading in stretch]
    return any(
        _lasts(stretch, holds, first, 120, interval) and any(begun <= n < ended for n in _run(holds, first))
        for first in range(len(stretch))
        if holds[first] and not (first and holds[first - 1])
    )


def _run(holds: Sequence[bool], first: int) -> Iterator[int]:
    while first < len(holds) and holds[first]:
        yield first
        first += 1


def found_episodes(rows: Sequence[dict[str, Any]]) -> list[Episode]:
    return [
        Episode(
            row["kind"],
            row["level"],
            _minute(row["start_timestamp"]),
            row["end_timestamp"] and _minute(row["end_timestamp"]),
            row["duration_minutes"],
            row["extreme_mg_dl"],
            _minute(row["extreme_timestamp"]),
            row["area_mg_dl_minutes"],
            row["time_to_recovery_minutes"],
            row["reading_count"],
            row["is_open"],
            row["is_cut_at_start"],
            row["is_cut_at_end"],
            row["has_gap"],
            (row["is_prolonged_below_70"], row["is_prolonged_below_54"])
            if row["kind"] == "hypoglycemia"
            else (row["is_prolonged_above_180"], row["is_prolonged_above_250"]),
        )
        for row in rows
    ]


def _minute(moment: datetime) -> float:
    return (moment - START).total_seconds() / 60


def rows_of(settings: Settings, query: str) -> list[dict[str, Any]]:
    with connect(settings, settings.warehouse_path, read_only=True) as warehouse:
        result = warehouse.execute(query)
        names = [column[0] for column in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def document(slot: int, interval: float, glucose: int | None) -> str:
    """The reading of one slot; None takes it back."""
    moment = START + timedelta(minutes=interval * slot)
    return json.dumps(
        {
            "_id": f"{slot:024x}",
            "type": "sgv",
            "sgv": glucose or 100,
            "date": int(moment.timestamp() * 1000),
            "device": "sensor",
            "isValid": glucose is not None,
        }
    )


_VALUES = (50, 53, 54, 69, 70, 100, 180, 181, 250, 251)
# A series is stretches of one value; None is a time without readings.
_series = st.lists(
    st.tuples(st.sampled_from((*_VALUES, 60, 100, 100, 200, None)), st.integers(1, 12) | st.just(26)),
    min_size=20,
    max_size=40,
)
_edits = st.lists(
    st.tuples(st.integers(0, 250), st.integers(1, 6), st.sampled_from((*_VALUES, None, None))), min_size=2, max_size=6
)


@pytest.mark.timeout(600)
@given(
    series=st.fixed_dictionaries(dict.fromkeys(INTERVALS, _series)),
    edits=st.fixed_dictionaries({name: st.lists(_edits, min_size=2, max_size=2) for name in INTERVALS}),
)
@hypothesis_settings(
    # A build of the models for each step is what costs: one example of many sites and long series.
    max_examples=1,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_episodes_and_gaps_equal_a_plain_state_machine(
    series: dict[str, list[tuple[int | None, int]]],
    edits: dict[str, list[list[tuple[int, int, int | None]]]],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The first example of Hypothesis is the simplest one.
    assume(len({value for sent in series.values() for value, _ in sent}) > 5)
    monkeypatch.setenv("LAKEHOUSE_HOME", str(tmp_path_factory.mktemp("lakehouse")))
    settings = Settings()
    lake, project = Lake.open(settings), DbtProject(settings)
    slots: dict[str, dict[int, int]] = {name: {} for name in INTERVALS}
    for step in range(3):
        for name, interval in INTERVALS.items():
            changes: dict[int, int | None] = {}
            if step == 0:
                values = [value for value, count in series[name] for _ in range(count)]
                changes = {slot: value for slot, value in enumerate(values) if value is not None}
            else:
                for first, count, value in edits[name][step - 1]:
                    changes |= dict.fromkeys(range(first, first + count), value)
            texts = [document(slot, interval, value) for slot, value in changes.items()]
            write_batch(lake, name, step + 1, documents_from_json(texts), FETCHED_AT)
            slots[name] = {slot: value for slot, value in sorted((slots[name] | changes).items()) if value is not None}
        process_sites(SITES, settings, lake)
        project.build("duckdb", MODELS, data_tests=False)
        for name, interval in INTERVALS.items():
            readings = [Reading(slot * interval, value) for slot, value in slots[name].items()]
            expected = sorted(expected_episodes(readings, interval), key=lambda e: (e.kind, e.level, e.start))
            found = found_episodes(
                rows_of(
                    settings,
                    f"from curated.fact_glucose_episodes where site = '{name}' order by kind, level, start_timestamp",
                )
            )
            assert [episode.__dict__ for episode in found] == [
                {**episode.__dict__, "area": pytest.approx(episode.area, rel=1e-12)} for episode in expected
            ]
            gaps = rows_of(settings, f"from curated.fact_sensor_gaps where site = '{name}' order by start_timestamp")
            assert [(_minute(gap["start_timestamp"]), _minute(gap["end_timestamp"])) for gap in gaps] == [
                (earlier.minute, later.minute)
                for earlier, later in pairwise(readings)
                if later.minute - earlier.minute > 2 * interval
            ]


def test_every_day_without_readings_lies_in_a_gap(settings: Settings, lake: Lake) -> None:
    # Days of readings with 50 hours of silence; the second half arrives first.
    first = [document(slot, 5, 100) for slot in range(200)]
    second = [document(slot, 5, 100) for slot in range(800, 1000)]
    gaps = ["+fact_sensor_gaps"]
    for batch, (texts, models) in enumerate(((second, gaps), (first, [*gaps, "+dim_glucose_date"])), start=1):
        write_batch(lake, "five", batch, documents_from_json(texts), FETCHED_AT)
        process_sites([site for site in SITES if site.name == "five"], settings, lake)
        DbtProject(settings).build("duckdb", models, data_tests=False)
    assert rows_of(
        settings, "select start_date::varchar as a, end_date::varchar as b, gap_minutes from curated.fact_sensor_gaps"
    ) == [{"a": "2026-10-25", "b": "2026-10-27", "gap_minutes": 3005.0}]
    assert (
        rows_of(
            settings,
            """
        with days as (
            select unnest(generate_series(min(reading_date), max(reading_date), interval 1 day))::date as day
            from curated.dim_glucose_date
        )

        select day from days
        where day not in (select reading_date from curated.dim_glucose_date)
            and not exists (from curated.fact_sensor_gaps where day > start_date and day < end_date)
        """,
        )
        == []
    )


@pytest.mark.timeout(600)
def test_compression_lows_of_a_known_plan_are_found(settings: Settings, lake: Lake) -> None:
    """Over 200 nights of two made-up people: at least 90 % of what is flagged is right, at least 60 % is flagged.

    The rule was not chosen on these people. Real lows have carbohydrates against them, compression lows none.
    """
    people = {"anna": Person(seed=31), "ben": Person(seed=47)}
    nights = [datetime(2026, 11, 20, tzinfo=UTC) - timedelta(days=n) for n in range(200)]
    for name, person in people.items():
        entries, treatments = [], []
        for night in nights:
            begins, ends = night - timedelta(hours=1), night + timedelta(hours=6)
            entries += [json.dumps(entry) for entry in person.entries(begins, ends)]
            treatments += [json.dumps(document) for document in Therapy(person).treatments(begins, ends)]
        write_batch(lake, name, 1, documents_from_json(entries), FETCHED_AT)
        write_batch(lake, name, 1, documents_from_json(treatments), FETCHED_AT, TREATMENTS)
    sites = [Site(name, "http://127.0.0.1:1", timezone="Europe/Berlin") for name in people]
    for collection in (ENTRIES, TREATMENTS):
        process_sites(sites, settings, lake, collection)
    DbtProject(settings).build("duckdb", ["+int_reading_flags"], data_tests=False)
    rows = rows_of(
        settings,
        """
        select site, reading_timestamp, entry_id in (
            select entry_id from intermediate.int_reading_flags where flag = 'compression_low_suspect'
        ) as is_flagged
        from curated.fact_glucose_readings where glucose_mg_dl < 70
        """,
    )
    flagged, right, with_low, found = 0, 0, 0, 0
    for name, person in people.items():
        lows = {row["reading_timestamp"]: row["is_flagged"] for row in rows if row["site"] == name}
        planned = [
            [moment for moment in lows if dip.start <= moment <= dip.start + timedelta(minutes=dip.minutes)]
            for night in nights
            for dip in _plan(person, night.date()).dips
            if dip.kind == "compression"
        ]
        flagged += sum(lows.values())
        right += len({moment for moments in planned for moment in moments if lows[moment]})
        with_low += sum(bool(moments) for moments in planned)
        found += sum(any(lows[moment] for moment in moments) for moments in planned)
    assert with_low >= 25
    assert right / flagged >= 0.9
    assert found / with_low >= 0.6
