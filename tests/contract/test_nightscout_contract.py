"""Holds the demo server against the table of facts, over real HTTP."""

import hashlib
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest
from nightscout_facts import FACTS, Fact

from nightscout_lakehouse.demo import DemoOptions, DemoServer, DemoStore, Person, Therapy

SECRET = "a secret of twelve"
READER, NOBODY, ADMIN = "reader-0123456789abcdef", "nobody-0123456789abcdef", "admin-0123456789abcdef"
TOKENS = {READER: "readable", NOBODY: "denied", ADMIN: "admin"}


def reading(number: int, moment: datetime, **changes: Any) -> dict[str, Any]:
    text = moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    document = {
        "_id": f"{number:024x}",
        "type": "sgv",
        "sgv": 100 + number % 100,
        "date": int(moment.timestamp()) * 1000,
        "dateString": text,
        "sysTime": text,
        "utcOffset": 0,
        "device": "sensor",
        "direction": "Flat",
    }
    return {key: value for key, value in {**document, **changes}.items() if value != "absent"}


def a_store() -> DemoStore:
    """Ten days of readings, two and a half minutes off the request's time so that no window's edge decides."""
    now = datetime.now(UTC)
    readings = [reading(n + 1, now - timedelta(minutes=5 * n + 2.5)) for n in range(2880)]
    odd = [
        reading(9001, now - timedelta(days=20), device="text-date", date="1500000000000"),
        reading(9002, now - timedelta(days=20, hours=1), device="no-type", type="absent"),
        reading(9003, now - timedelta(days=20, hours=2), device="meter", type="mbg", mbg=98, sgv="absent"),
        reading(9004, now - timedelta(days=20, hours=3), device="deleted", type="mbg2", isValid=False, srvModified=5),
    ]
    treatments = [
        treatment(n, now - timedelta(minutes=12 * n + 6), eventType="Exercise" if n % 24 == 0 and n < 96 else "Note")
        for n in range(1215)
    ]
    treatments += [treatment(2000 + n, now - timedelta(days=5.5), eventType=f"kind {n}") for n in range(3)]
    treatments += [
        treatment(3000, datetime(2015, 6, 7, 12, tzinfo=UTC), notes="old"),
        {"_id": f"{3001:024x}", "eventType": "Note", "created_at": "1433678400000"},
    ]
    store = DemoStore([*readings, *odd], treatments, Therapy(Person()).profiles()[1:])
    store.device_status = [treatment(n, now - timedelta(hours=n + 0.5)) for n in range(240)]
    return store


def treatment(number: int, moment: datetime, **fields: Any) -> dict[str, Any]:
    text = moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return {"_id": f"{number:024x}", "created_at": text, "utcOffset": 0, **fields}


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, DemoServer]]:
    options = {"api_secret": SECRET, "tokens": TOKENS, "auth_fail_delay_seconds": 0.0}
    opened = DemoServer(a_store(), DemoOptions(**options))
    closed = DemoServer(a_store(), DemoOptions(default_roles="denied", **options))
    with opened, closed:
        yield {"open": opened, "closed": closed}


def filled(text: str, url: str) -> str:
    now = datetime.now(UTC)
    if "$jwt" in text:
        text = text.replace("$jwt", httpx.get(f"{url}/api/v2/authorization/request/{READER}").json()["token"])
    text = text.replace("$sha1", hashlib.sha1(SECRET.encode()).hexdigest())
    text = text.replace("$sha512", hashlib.sha512(SECRET.encode()).hexdigest())
    text = re.sub(r"\$now-(\d+)d", lambda m: str(int((now - timedelta(days=int(m[1]))).timestamp() * 1000)), text)
    return re.sub(r"\$day-(\d+)", lambda m: (now - timedelta(days=int(m[1]))).strftime("%Y-%m-%dT%H:%M"), text)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.id)
def test_the_demo_server_does_what_nightscout_does(servers: dict[str, DemoServer], fact: Fact) -> None:
    url = servers[fact.server].url
    headers = {"Accept": "application/json"} | {name: filled(value, url) for name, value in fact.headers.items()}
    response = httpx.request(fact.method, url + filled(fact.path, url), headers=headers)
    assert response.status_code == fact.status, fact.says
    if fact.count is not None:
        assert len(response.json()) == fact.count, fact.says
    if fact.body == "null":
        assert response.text == "null", fact.says
    elif fact.body is not None:
        assert response.json() == fact.body, fact.says
    if fact.has or fact.lacks:
        documents = response.json()
        assert documents
        assert all(set(fact.has) <= document.keys() for document in documents), fact.says
        assert not any(set(fact.lacks) & document.keys() for document in documents), fact.says
    assert set(fact.answer_headers) <= set(response.headers), fact.says


def test_every_fact_has_its_own_name() -> None:
    assert len({fact.id for fact in FACTS}) == len(FACTS)


def test_lists_are_newest_first_and_sort_only_chooses_which(servers: dict[str, DemoServer]) -> None:
    url = servers["open"].url
    newest = [d["date"] for d in httpx.get(f"{url}/api/v1/entries/sgv.json?find[date][$gte]=0&count=5").json()]
    oldest = [
        d["date"] for d in httpx.get(f"{url}/api/v1/entries/sgv.json?find[date][$gte]=0&count=5&sort[date]=1").json()
    ]
    assert newest == sorted(newest, reverse=True)
    assert oldest == sorted(oldest, reverse=True)
    assert max(oldest) < min(newest)


def test_an_etag_answers_304_until_something_changes(servers: dict[str, DemoServer]) -> None:
    url = f"{servers['open'].url}/api/v1/entries/sgv.json?count=3"
    tag = httpx.get(url).headers["etag"]
    assert tag.startswith('W/"')
    assert httpx.get(url, headers={"If-None-Match": tag}).status_code == 304


def test_last_modified_is_the_time_of_the_newest_reading_whatever_was_written_since() -> None:
    newest = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=3)
    store = DemoStore([reading(1, newest)])
    with DemoServer(store) as server:
        url = f"{server.url}/api/v1/entries/sgv.json?find[date][$gte]=0"
        first = httpx.get(url)
        assert parsedate_to_datetime(first.headers["last-modified"]) == newest
        store.put(reading(2, newest - timedelta(days=1)))
        since = {"If-Modified-Since": first.headers["last-modified"]}
        assert len(httpx.get(url).json()) == 2
        # The backfill is hidden from whoever asks for what is newer.
        assert httpx.get(url, headers=since).status_code == 304


def test_text_is_what_comes_without_json(servers: dict[str, DemoServer]) -> None:
    url = servers["open"].url
    tsv = httpx.get(f"{url}/api/v1/entries/sgv?count=2", headers={"Accept": "*/*"})
    csv = httpx.get(f"{url}/api/v1/entries/sgv.csv?count=2")
    assert tsv.headers["content-type"].startswith("text/plain")
    assert csv.headers["content-type"].startswith("text/csv")
    assert len(tsv.text.split("\r\n")) == len(csv.text.split("\r\n")) == 2
    assert tsv.text.count("\t") == csv.text.count(",") == 8


def test_answers_above_a_kilobyte_are_compressed(servers: dict[str, DemoServer]) -> None:
    url = servers["open"].url
    assert httpx.get(f"{url}/api/v1/entries.json").headers.get("content-encoding") == "gzip"
    assert "content-encoding" not in httpx.get(f"{url}/api/versions").headers


def test_a_post_rewrites_the_time_and_a_repost_overwrites_under_the_same_id(servers: dict[str, DemoServer]) -> None:
    url, headers = servers["closed"].url, {"api-secret": ADMIN}
    document = {"type": "sgv", "sgv": 111, "date": 1600000000000, "dateString": "2020-09-13T14:26:40.000+02:00"}
    (first,) = httpx.post(f"{url}/api/v1/entries.json", json=[document], headers=headers).json()
    assert (first["dateString"], first["utcOffset"]) == ("2020-09-13T12:26:40.000Z", 120)
    assert first["sysTime"] == first["dateString"]
    (second,) = httpx.post(f"{url}/api/v1/entries.json", json=[{**document, "sgv": 99}], headers=headers).json()
    assert (second["_id"], second["sgv"]) == (first["_id"], 99)


def test_a_treatment_is_stored_in_utc_and_a_repost_overwrites_it(servers: dict[str, DemoServer]) -> None:
    url, headers = f"{servers['closed'].url}/api/v1/treatments.json", {"api-secret": ADMIN}
    document = {"eventType": "Meal Bolus", "created_at": "2020-09-13T14:26:40+02:00", "insulin": "4.5", "carbs": ""}
    (first,) = httpx.post(url, json=document, headers=headers).json()
    assert (first["created_at"], first["utcOffset"]) == ("2020-09-13T12:26:40.000Z", 120)
    (second,) = httpx.post(url, json={**document, "insulin": 5}, headers=headers).json()
    assert (second["_id"], second["insulin"]) == (first["_id"], 5)
    found = httpx.get(f"{url}?find[created_at]=2020-09-13T12:26:40Z&token={READER}").json()
    assert [(d["insulin"], d["carbs"]) for d in found] == [(5, None)]
    gone = httpx.delete(f"{url.removesuffix('.json')}/{first['_id']}", headers=headers).json()
    assert gone == {"n": 1, "ok": 1}
    assert httpx.get(f"{url}?find[created_at]=2020-09-13T12:26:40Z&token={READER}").json() == []


def test_a_pre_bolus_becomes_two_documents(servers: dict[str, DemoServer]) -> None:
    url, headers = f"{servers['closed'].url}/api/v1/treatments.json", {"api-secret": ADMIN}
    document = {"eventType": "Combo Bolus", "created_at": "2021-09-13T12:00:00Z", "insulin": 3, "carbs": 30}
    httpx.post(url, json=[{**document, "preBolus": 15}], headers=headers)
    later, bolus = httpx.get(f"{url}?find[created_at][$gte]=2021&find[created_at][$lt]=2022&token={READER}").json()
    assert (bolus["insulin"], bolus["carbs"], bolus["preBolus"]) == (3, None, 15)
    assert (later["insulin"], later["carbs"], later["created_at"]) == (None, 30, "2021-09-13T12:15:00.000Z")
    assert "utcOffset" not in later


def test_treatments_are_denormalized_too() -> None:
    store = DemoStore(treatments=[treatment(1, datetime.now(UTC) - timedelta(minutes=5), utcOffset=-300)])
    with DemoServer(store, DemoOptions(denormalize_dates=True)) as server:
        (document,) = httpx.get(f"{server.url}/api/v1/treatments.json").json()
    assert document["created_at"].endswith("-0500")
    assert "utcOffset" not in document


def test_v3_history_sees_only_what_v3_stored(servers: dict[str, DemoServer]) -> None:
    url = servers["closed"].url
    jwt = httpx.get(f"{url}/api/v2/authorization/request/{ADMIN}").json()["token"]
    headers = {"Authorization": f"Bearer {jwt}"}
    before = httpx.get(f"{url}/api/v3/entries/history/10", headers=headers).json()["result"]
    assert before == []
    created = httpx.post(
        f"{url}/api/v3/entries", json={"type": "sgv", "sgv": 100, "date": 1600000300000, "app": "test"}, headers=headers
    )
    assert created.status_code == 201
    identifier = created.json()["identifier"]
    (after,) = httpx.get(f"{url}/api/v3/entries/history/10", headers=headers).json()["result"]
    assert after["identifier"] == identifier
    assert "_id" not in after
    assert httpx.delete(f"{url}/api/v3/entries/{identifier}", headers=headers).status_code == 200
    assert httpx.get(f"{url}/api/v3/entries/{identifier}", headers=headers).status_code == 410
    (tombstone,) = httpx.get(f"{url}/api/v3/entries/history/10", headers=headers).json()["result"]
    assert tombstone["isValid"] is False
    in_v1 = httpx.get(f"{url}/api/v1/entries.json?find[date]=1600000300000&token={READER}").json()
    assert [document["isValid"] for document in in_v1] == [False]


def test_after_a_refused_login_later_requests_wait_until_one_succeeds() -> None:
    options = DemoOptions(default_roles="denied", tokens=TOKENS, auth_fail_delay_seconds=0.4)
    with DemoServer(a_store(), options) as server:
        url = f"{server.url}/api/v1/entries.json?count=1"
        assert httpx.get(url, headers={"api-secret": "wrong"}).status_code == 401
        started = time.monotonic()
        assert httpx.get(url, headers={"api-secret": READER}).status_code == 200
        assert time.monotonic() - started > 0.3
        started = time.monotonic()
        assert httpx.get(url, headers={"api-secret": READER}).status_code == 200
        assert time.monotonic() - started < 0.3


def test_denormalized_dates_carry_their_zone() -> None:
    store = DemoStore([reading(1, datetime.now(UTC) - timedelta(minutes=5), utcOffset=120)])
    with DemoServer(store, DemoOptions(denormalize_dates=True)) as server:
        (document,) = httpx.get(f"{server.url}/api/v1/entries.json?find[date][$gte]=0").json()
    assert document["dateString"].endswith("+0200")
    assert "utcOffset" not in document
