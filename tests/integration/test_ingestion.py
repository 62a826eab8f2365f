"""Reading over real HTTP: nothing is missed, nothing lands twice, and one site's trouble stays its own."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from nightscout_lakehouse.demo import DemoOptions, DemoServer, DemoStore, Person, Therapy
from nightscout_lakehouse.lib.ingestion import (
    DAY_MS,
    IngestionOptions,
    SiteIngestion,
    SiteReader,
    ingest_sites,
    ingestion_options,
    load_state,
    site_timezone,
)
from nightscout_lakehouse.lib.lake import Lake, raw_folder
from nightscout_lakehouse.lib.nightscout_client import FetchPolicy, NightscoutClient
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.settings import Settings, load_settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import open_warehouse

NOW_MS = int(datetime.now(UTC).timestamp()) * 1000
TOKEN = "reader-0123456789abcdef"


def entry(number: int, minutes_ago: float, **changes: Any) -> dict[str, Any]:
    date = NOW_MS - int(minutes_ago * 60_000)
    text = datetime.fromtimestamp(date / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    document = {
        "_id": f"{number:024x}",
        "type": "sgv",
        "sgv": 120,
        "date": date,
        "dateString": text,
        "sysTime": text,
        "utcOffset": 0,
        "device": "sensor",
    }
    return {key: value for key, value in {**document, **changes}.items() if value != "absent"}


class Tick:
    """Reads and processes one site, as a run does."""

    def __init__(self, settings: Settings, lake: Lake, url: str, **options: Any) -> None:
        self.settings, self.lake = settings, lake
        self.site = Site("anna", url, timezone="UTC")
        self.options = IngestionOptions(**options)

    def read(self, **arguments: Any) -> SiteIngestion:
        with NightscoutClient(self.site, FetchPolicy(timeout_seconds=10, max_attempts=1)) as client:
            reader = SiteReader(self.site, client, self.lake, self.settings, self.options)
            return reader.read(**arguments)

    def __call__(self, **arguments: Any) -> SiteIngestion:
        report = self.read(**arguments)
        process_sites([self.site], self.settings, self.lake)
        return report

    def rows(self, columns: str, where: str = "true") -> list[tuple[Any, ...]]:
        with open_warehouse(self.settings) as warehouse:
            return warehouse.execute(
                f"select {columns} from lake.nightscout_entries where {where} order by all"
            ).fetchall()


@pytest.fixture
def store() -> DemoStore:
    return DemoStore()


@pytest.fixture
def make_tick(settings: Settings, lake: Lake, store: DemoStore) -> Iterator[Callable[..., Tick]]:
    with DemoServer(store) as server:
        yield lambda **options: Tick(settings, lake, server.url, **options)


def test_the_whole_history_is_read_however_far_it_reaches(make_tick: Callable[..., Tick], store: DemoStore) -> None:
    ages_days = [0, 1, 29, 31, 400, 401, 3000]
    for number, days in enumerate(ages_days):
        store.put(entry(number, days * 1440 + 1))
    tick = make_tick()
    report = tick()
    assert (report.fetched, report.landed, report.history_complete) == (7, 7, True)
    assert len(tick.rows("nightscout_id")) == 7
    # Years without readings cost a request, not a window a month.
    assert report.requests < 30


def test_a_tick_with_nothing_new_writes_nothing(make_tick: Callable[..., Tick], store: DemoStore) -> None:
    for number in range(20):
        store.put(entry(number, number * 60 + 1))
    tick = make_tick()
    tick()
    files = {file: tick.lake.size_bytes(file) for file in tick.lake.list_files(raw_folder("anna"))}
    report = tick()
    assert (report.landed, report.deletions, report.batches) == (0, 0, ())
    assert report.fetched == report.unchanged == 20
    after = {file: tick.lake.size_bytes(file) for file in tick.lake.list_files(raw_folder("anna"))}
    assert {f for f in after if f.endswith(".parquet")} == {f for f in files if f.endswith(".parquet")}


def test_new_edited_late_and_deleted_documents_are_found(make_tick: Callable[..., Tick], store: DemoStore) -> None:
    for number in range(40):
        store.put(entry(number, 60 + number * 5))
    tick = make_tick()
    tick()
    store.put(entry(100, 1))
    store.put(entry(101, 62.5))
    store.remove(f"{3:024x}")
    store.remove(f"{4:024x}")
    store.put(entry(4, 60 + 4 * 5, sgv=55))
    report = tick()
    assert (report.landed, report.deletions) == (3, 1)
    assert tick.rows("nightscout_id", "is_deleted") == [(f"{3:024x}",)]
    assert tick.rows("glucose_mg_dl", f"nightscout_id = '{4:024x}'") == [(55.0,)]
    assert len(tick.rows("nightscout_id", "not is_deleted")) == 41


def test_a_deleted_document_that_comes_back_counts_again(make_tick: Callable[..., Tick], store: DemoStore) -> None:
    store.put(entry(1, 10))
    store.put(entry(2, 20))
    tick = make_tick()
    tick()
    store.remove(f"{1:024x}")
    tick()
    assert tick.rows("is_deleted") == [(False,), (True,)]
    store.put(entry(1, 10))
    tick()
    assert tick.rows("is_deleted") == [(False,), (False,)]


def test_old_edits_and_deletions_are_found_in_rotation(make_tick: Callable[..., Tick], store: DemoStore) -> None:
    for number in range(60):
        store.put(entry(number, number * 1440 + 1))
    tick = make_tick(reread_days_per_tick=10)
    tick()
    store.remove(f"{40:024x}")
    store.remove(f"{50:024x}")
    store.put(entry(50, 50 * 1440 + 1, sgv=77))
    store.put(entry(200, 45.5 * 1440))
    reports = [tick() for _ in range(7)]
    assert sum(report.deletions for report in reports) == 1
    assert tick.rows("nightscout_id", "is_deleted") == [(f"{40:024x}",)]
    assert tick.rows("glucose_mg_dl", f"nightscout_id = '{50:024x}'") == [(77.0,)]
    assert len(tick.rows("nightscout_id", f"nightscout_id = '{200:024x}'")) == 1


def test_history_that_appears_later_below_the_oldest_is_read(make_tick: Callable[..., Tick], store: DemoStore) -> None:
    tick = make_tick()
    assert tick().fetched == 0
    store.put(entry(1, 500 * 1440))
    store.put(entry(2, 1))
    tick()
    assert len(tick.rows("nightscout_id")) == 2


def test_pruning_on_the_server_does_not_prune_the_lake(
    make_tick: Callable[..., Tick], store: DemoStore, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(60):
        store.put(entry(number, number * 5 + 1))
    tick = make_tick()
    tick()
    for number in range(10, 60):
        store.remove(f"{number:024x}")
    report = tick()
    assert (report.deletions, report.retained) == (0, 50)
    assert tick.rows("nightscout_id", "is_deleted") == []
    assert "the lake keeps them" in caplog.text
    accepting = make_tick(accept_mass_deletions=True)
    assert accepting().deletions == 50
    assert len(tick.rows("nightscout_id", "is_deleted")) == 50


def test_a_window_with_more_than_the_count_is_halved(make_tick: Callable[..., Tick], store: DemoStore) -> None:
    for number in range(300):
        store.put(entry(number, number * 5 + 1))
    for number in range(300, 320):
        store.put(entry(number, 50, device=f"device {number}"))
    tick = make_tick(max_count=15)
    assert tick().landed == 320
    assert len(tick.rows("nightscout_id")) == 320


def test_dates_stored_as_text_in_the_past_and_far_future_are_seen(
    make_tick: Callable[..., Tick], store: DemoStore
) -> None:
    store.put(entry(1, 30, date=str(NOW_MS - 30 * 60_000)))
    store.put(entry(2, 20, date="absent"))
    store.put(entry(3, 90 * 1440, date=str(NOW_MS - 90 * DAY_MS)))
    store.put(entry(4, 0, date=4_070_908_800_000))
    store.put(entry(5, 0, date=0))
    store.put(entry(6, 100 * 1440))
    store.put(entry(7, 10))
    tick = make_tick()
    tick()
    assert [row[0] for row in tick.rows("nightscout_id", "kind = 'sgv'")] == [f"{n:024x}" for n in (1, 2, 3, 6, 7)]
    assert tick.rows("quarantine_reason", "kind = 'quarantined'") == [("timestamp_in_future",), ("timestamp_too_old",)]
    report = tick()
    assert (report.landed, report.deletions) == (0, 0)
    state = load_state(tick.lake, "anna")
    assert state.newest_ms is not None
    assert state.newest_ms < NOW_MS


def test_a_first_fetch_can_be_limited_and_continued(make_tick: Callable[..., Tick], store: DemoStore) -> None:
    for number in range(200):
        store.put(entry(number, number * 1440 + 1))
    limited = make_tick(first_fetch=40)
    report = limited()
    assert 40 <= report.fetched < 100
    assert not report.history_complete
    report = make_tick()()
    assert report.history_complete
    assert len(limited.rows("nightscout_id")) == 200


def test_a_first_read_that_is_killed_goes_on_where_it_was(
    make_tick: Callable[..., Tick], store: DemoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(200):
        store.put(entry(number, number * 1440 + 1))
    tick = make_tick()
    landed = []
    write = Lake.write_parquet

    def dies_at_the_third(self: Lake, relative: str, table: Any) -> int:
        if len(landed) == 2:
            raise KeyboardInterrupt
        landed.append(relative)
        return write(self, relative, table)

    with monkeypatch.context() as patched:
        patched.setattr(Lake, "write_parquet", dies_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            tick.read()
    report = tick()
    assert report.history_complete
    assert len(tick.rows("distinct nightscout_id")) == 200
    assert not [batch for batch in report.batches if batch <= 2]


def test_what_an_unprocessed_batch_says_is_not_forgotten(make_tick: Callable[..., Tick], store: DemoStore) -> None:
    store.put(entry(1, 10, sgv=100))
    tick = make_tick()
    tick()
    store.remove(f"{1:024x}")
    store.put(entry(1, 10, sgv=200))
    tick.read()
    store.remove(f"{1:024x}")
    store.put(entry(1, 10, sgv=100))
    tick()
    assert tick.rows("glucose_mg_dl") == [(100.0,)]


def test_since_reads_a_stretch_again(make_tick: Callable[..., Tick], store: DemoStore) -> None:
    for number in range(100):
        store.put(entry(number, number * 1440 + 1))
    tick = make_tick(reread_days_per_tick=0)
    tick()
    store.remove(f"{80:024x}")
    assert tick().deletions == 0
    assert tick(since=datetime.now(UTC) - timedelta(days=90)).deletions == 1


def test_api_v3_names_old_days_that_changed(settings: Settings, lake: Lake) -> None:
    store = DemoStore([entry(number, number * 1440 + 1) for number in range(100)])
    with DemoServer(store, DemoOptions(tokens={TOKEN: "admin"})) as server:
        tick = Tick(settings, lake, server.url, reread_days_per_tick=0)
        tick.site = Site("anna", server.url, timezone="UTC", token=Settings(NIGHTSCOUT_TOKEN=TOKEN).nightscout_token)
        tick()
        jwt = httpx.get(f"{server.url}/api/v2/authorization/request/{TOKEN}").json()["token"]
        deleted = httpx.delete(f"{server.url}/api/v3/entries/{70:024x}", headers={"Authorization": f"Bearer {jwt}"})
        assert deleted.status_code == 200
        tick()
        assert tick.rows("nightscout_id", "is_deleted") == [(f"{70:024x}",)]


def test_one_site_that_fails_does_not_stop_the_others(settings: Settings, lake: Lake) -> None:
    with (
        DemoServer(DemoStore([entry(1, 5)])) as good,
        DemoServer(DemoStore(), DemoOptions(default_roles="denied")) as shut,
    ):
        sites = [
            Site("good", good.url, timezone="UTC"),
            Site("shut", shut.url, timezone="UTC"),
            Site("gone", "http://127.0.0.1:9", timezone="UTC"),
        ]
        settings = settings.model_copy(update={"max_attempts": 1})
        reports = {report.site: report for report in ingest_sites(sites, settings, lake)}
    assert reports["good"].error is None
    assert reports["good"].landed == 1
    assert "refuses to be read (HTTP 401)" in str(reports["shut"].error)
    assert reports["shut"].requests == 1
    assert "refused" in str(reports["gone"].error)


def test_the_time_zone_comes_from_configuration_then_profile_then_utc(settings: Settings, lake: Lake) -> None:
    (profile, _) = Therapy(Person(timezone="America/New_York")).profiles()
    capitals = json.loads(json.dumps(profile).replace("America/New_York", "ETC/GMT+5"))
    cases = {
        "configured": (Site("configured", "", timezone="Europe/Berlin"), [profile], ("Europe/Berlin", "configuration")),
        "profile": (Site("profile", ""), [profile], ("America/New_York", "profile")),
        "capitals": (Site("capitals", ""), [capitals], ("Etc/GMT+5", "profile")),
        "nothing": (Site("nothing", ""), [], ("UTC", "default")),
    }
    for site, profiles, expected in cases.values():
        with DemoServer(DemoStore([entry(1, 5)], profiles=profiles)) as server:
            site = Site(site.name, server.url, timezone=site.timezone)
            (report,) = ingest_sites([site], settings, lake)
        assert report.error is None
        assert site_timezone(lake, site) == expected


def test_options_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSCOUT_FIRST_FETCH", "2016")
    monkeypatch.setenv("NIGHTSCOUT_API_V3", "off")
    options = ingestion_options(load_settings())
    assert (options.first_fetch, options.use_api_v3) == (2016, False)
    monkeypatch.setenv("NIGHTSCOUT_FIRST_FETCH", "all")
    assert ingestion_options(load_settings()).first_fetch is None


def test_a_long_stretch_of_years_without_readings_is_read_again_in_few_requests(
    make_tick: Callable[..., Tick], store: DemoStore
) -> None:
    store.put(entry(1, 3000 * 1440))
    store.put(entry(2, 1000 * 1440, date=str(NOW_MS - 1000 * DAY_MS)))
    for number in range(3, 50):
        store.put(entry(number, number * 1440))
    tick = make_tick(reread_days_per_tick=0)
    tick()
    store.remove(f"{1:024x}")
    store.put(entry(2, 1000 * 1440, date=str(NOW_MS - 1000 * DAY_MS), sgv=99))
    store.put(entry(30, 30 * 1440, sgv=77))
    report = tick(since=datetime(1900, 1, 1, tzinfo=UTC))
    assert (report.landed, report.deletions) == (2, 1)
    assert report.requests < 30
    assert tick.rows("glucose_mg_dl", f"nightscout_id = '{2:024x}'") == [(99.0,)]


def test_what_was_in_the_future_for_a_clock_that_was_behind_counts_once_it_is_right(
    make_tick: Callable[..., Tick], store: DemoStore
) -> None:
    """A small computer without a clock of its own starts in the past, and learns the time from the network later."""
    for number in range(20):
        store.put(entry(number, number * 60 + 1))
    tick = make_tick()
    days_behind = 10

    def the_wrong_time() -> datetime:
        return datetime.now(UTC) - timedelta(days=days_behind)

    with NightscoutClient(tick.site, FetchPolicy(max_attempts=1)) as client:
        SiteReader(tick.site, client, tick.lake, tick.settings, tick.options, now=the_wrong_time).read()
    process_sites([tick.site], tick.settings, tick.lake)
    assert tick.rows("distinct quarantine_reason") == [("timestamp_in_future",)]
    assert tick().landed == 20
    assert tick.rows("count(*), count(*) filter (kind = 'sgv')") == [(20, 20)]
    with open_warehouse(tick.settings) as warehouse:
        assert warehouse.execute("select stored, duplicates from ops.batches where batch = 2").fetchall() == [(20, 0)]
    assert tick().landed == 0
