"""The made-up person's therapy: the same whenever it is asked for, and with everything that uploaders write."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from nightscout_lakehouse.demo import Person, Therapy

START = datetime(2026, 3, 1, tzinfo=UTC)
KINDS = {
    *("Meal Bolus", "Correction Bolus", "Combo Bolus", "Carb Correction", "Temp Basal", "Profile Switch"),
    *("Temporary Target", "Exercise", "Note", "Announcement", "BG Check", "Site Change", "Sensor Start"),
    *("Sensor Change", "Pump Battery Change", "Suspend Pump", "Resume Pump"),
}


@pytest.mark.parametrize("seed", [1, 2])
def test_everything_that_uploaders_write_is_there_once(seed: int) -> None:
    documents = list(Therapy(Person(seed=seed)).treatments(START, START + timedelta(days=90)))
    assert {document["eventType"] for document in documents} == KINDS
    assert len({document["_id"] for document in documents}) == len(documents)
    times = [document["created_at"] for document in documents]
    assert all(START.isoformat()[:10] <= text < "2026-05-30" for text in times)
    assert any(document.get("duration") == 0 and document["eventType"] == "Temp Basal" for document in documents)
    assert {document["units"] for document in documents if document["eventType"] == "BG Check"} == {"mmol", "mg/dl"}
    basals = [d for d in documents if d["eventType"] == "Temp Basal" and d["duration"]]
    ends = [datetime.fromisoformat(d["created_at"]) + timedelta(minutes=d["duration"]) for d in basals]
    starts = [datetime.fromisoformat(d["created_at"]) for d in basals]
    assert any(start < end for start, end in zip(starts[1:], ends, strict=False))


def test_it_does_not_depend_on_when_it_is_asked_for() -> None:
    whole = list(Therapy(Person()).treatments(START, START + timedelta(days=4)))
    parts = [
        document
        for hour in range(0, 96, 6)
        for document in Therapy(Person()).treatments(START + timedelta(hours=hour), START + timedelta(hours=hour + 6))
    ]
    assert sorted(map(json.dumps, parts)) == sorted(map(json.dumps, whole))


@pytest.mark.parametrize("is_loop", [False, True])
def test_device_status_comes_every_five_minutes_with_sane_figures(is_loop: bool) -> None:
    statuses = list(Therapy(Person(), is_loop=is_loop).device_status(START, START + timedelta(hours=6)))
    assert len(statuses) == 72
    assert len({status["created_at"] for status in statuses}) == 72
    system = "loop" if is_loop else "openaps"
    assert all(0 <= status[system]["iob"]["iob"] < 30 for status in statuses)
    assert all(0 < status["pump"]["reservoir"] <= 180 for status in statuses)
