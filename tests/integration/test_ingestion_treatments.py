"""Treatments, device status and profiles over real HTTP: edits, deletions, odd times, refusals that stay their own."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from nightscout_lakehouse.demo import DemoOptions, DemoServer, DemoStore, Person, Therapy
from nightscout_lakehouse.lib.ingestion import IngestionOptions, SiteIngestion, SiteReader, ingest_sites, load_state
from nightscout_lakehouse.lib.lake import Lake, raw_folder
from nightscout_lakehouse.lib.nightscout_client import FetchPolicy, NightscoutClient
from nightscout_lakehouse.lib.nightscout_collections import DEVICE_STATUS, ENTRIES, PROFILES, TREATMENTS, Collection
from nightscout_lakehouse.lib.processing import process_sites
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import open_warehouse

# Never at a full minute, so that a time written without its seconds is another one.
NOW = (datetime.now(UTC) - timedelta(minutes=1)).replace(second=30, microsecond=0)
TOKEN = "admin-0123456789abcdef"
DAY_MINUTES = 1440


def treatment(number: int, minutes_ago: float, **fields: Any) -> dict[str, Any]:
    moment = NOW - timedelta(minutes=minutes_ago)
    document = {
        "_id": f"{number:024x}",
        "eventType": "Meal Bolus",
        "created_at": moment.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "insulin": 1 + number / 100,
    }
    return {key: value for key, value in {**document, **fields}.items() if value != "absent"}


class Tick:
    """Reads and processes one collection of one site, as a run does."""

    def __init__(
        self, settings: Settings, lake: Lake, url: str, collection: Collection = TREATMENTS, **options: Any
    ) -> None:
        self.settings, self.lake, self.collection = settings, lake, collection
        self.site = Site("anna", url, timezone="UTC")
        self.options = IngestionOptions(**options)

    def read(self, **arguments: Any) -> SiteIngestion:
        with NightscoutClient(self.site, FetchPolicy(timeout_seconds=10, max_attempts=1)) as client:
            reader = SiteReader(self.site, client, self.lake, self.settings, self.options, self.collection)
            return reader.read(**arguments)

    def __call__(self, **arguments: Any) -> SiteIngestion:
        report = self.read(**arguments)
        process_sites([self.site], self.settings, self.lake, self.collection)
        return report

    def rows(self, columns: str, where: str = "true") -> list[tuple[Any, ...]]:
        with open_warehouse(self.settings) as warehouse:
            return warehouse.execute(
                f"select {columns} from lake.{self.collection.name} where {where} order by all"
            ).fetchall()


@pytest.fixture
def store() -> DemoStore:
    return DemoStore()


@pytest.fixture
def make_tick(settings: Settings, lake: Lake, store: DemoStore) -> Iterator[Callable[..., Tick]]:
    with DemoServer(store) as server:
        yield lambda **options: Tick(settings, lake, server.url, **options)


def remove(store: DemoStore, *numbers: int) -> None:
    gone = {f"{number:024x}" for number in numbers}
    store.treatments[:] = [document for document in store.treatments if document["_id"] not in gone]


def test_the_whole_history_is_read_however_far_it_reaches(make_tick: Callable[..., Tick], store: DemoStore) -> None:
    store.treatments += [
        treatment(number, days * DAY_MINUTES + 1) for number, days in enumerate([0, 1, 29, 31, 400, 401, 3000])
    ]
    tick = make_tick()
    report = tick()
    assert (report.fetched, report.landed, report.history_complete) == (7, 7, True)
    assert len(tick.rows("nightscout_id")) == 7
    assert report.requests < 30
    again = tick()
    assert (again.landed, again.deletions, again.batches) == (0, 0, ())
    # The recent window, what sorts below the dates, and one of the rotation with the question before it.
    assert again.requests <= 5


def test_new_edited_late_and_deleted_treatments_are_found(make_tick: Callable[..., Tick], store: DemoStore) -> None:
    store.treatments += [treatment(number, 60 + number * 5) for number in range(40)]
    tick = make_tick()
    tick()
    remove(store, 3, 4)
    store.treatments += [treatment(100, 1), treatment(101, 62.5), treatment(4, 80, insulin=9)]
    report = tick()
    assert (report.landed, report.deletions) == (3, 1)
    assert tick.rows("nightscout_id", "is_deleted") == [(f"{3:024x}",)]
    assert tick.rows("insulin_units", f"nightscout_id = '{4:024x}'") == [(9.0,)]
    assert len(tick.rows("nightscout_id", "not is_deleted")) == 41


def test_old_edits_and_deletions_are_found_in_rotation(make_tick: Callable[..., Tick], store: DemoStore) -> None:
    store.treatments += [treatment(number, number * DAY_MINUTES + 1) for number in range(60)]
    tick = make_tick(reread_days_per_tick=10)
    tick()
    remove(store, 40, 50)
    store.treatments += [treatment(50, 50 * DAY_MINUTES + 1, insulin=7), treatment(200, 45.5 * DAY_MINUTES)]
    reports = [*(tick.read() for _ in range(6)), tick()]
    assert sum(report.deletions for report in reports) == 1
    assert tick.rows("nightscout_id", "is_deleted") == [(f"{40:024x}",)]
    assert tick.rows("insulin_units", f"nightscout_id = '{50:024x}'") == [(7.0,)]
    assert len(tick.rows("nightscout_id", f"nightscout_id = '{200:024x}'")) == 1


def test_times_in_every_form_are_found_land_once_and_are_seen_to_go(
    make_tick: Callable[..., Tick], store: DemoStore
) -> None:
    moments = [NOW - timedelta(days=days, minutes=7) for days in (0, 1, 10, 70, 400)]
    epochs = [int(moment.timestamp()) for moment in moments]
    forms = [
        *(str(epoch * 1000) for epoch in epochs),
        *(str(epoch) for epoch in epochs),
        *(moment.strftime("%a %b %d %Y %H:%M:%S GMT+0000 (UTC)") for moment in moments),
        *(moment.strftime("%Y-%m-%dT%H:%M:%SZ") for moment in moments),
        *(moment.strftime("%Y-%m-%dT%H:%MZ") for moment in moments),
        *((moment + timedelta(hours=10)).strftime("%Y-%m-%dT%H:%M:%S+10:00") for moment in moments),
        *((moment - timedelta(hours=11)).strftime("%Y-%m-%dT%H:%M:%S-1100") for moment in moments),
        *(moment.strftime("%Y-%m-%d %H:%M:%S") for moment in moments),
        "1970-01-01T00:00:05.000Z",
        "nonsense",
    ]
    store.treatments += [treatment(number, 0, created_at=form) for number, form in enumerate(forms)]
    tick = make_tick(reread_days_per_tick=100)
    assert tick().history_complete
    assert len(tick.rows("distinct nightscout_id")) == len(forms)
    assert tick.rows("quarantine_reason", "kind = 'quarantined'") == [("timestamp_too_old",), ("unreadable_timestamp",)]
    assert tick.rows("count(distinct treatment_timestamp)", "quarantine_reason is null") == [(5 + 5,)]
    for _ in range(7):
        report = tick.read()
        assert (report.landed, report.deletions) == (0, 0)
    # The digits of an epoch, JavaScript's text and text with an offset, all of 400 days ago but one.
    gone = [4, 9, 14, 29, 40]
    remove(store, *gone)
    for _ in range(6):
        tick.read()
    tick()
    assert [row[0] for row in tick.rows("nightscout_id", "is_deleted")] == [f"{number:024x}" for number in gone]


def test_a_window_with_more_than_the_count_is_halved(make_tick: Callable[..., Tick], store: DemoStore) -> None:
    store.treatments += [treatment(number, number * 5 + 1) for number in range(300)]
    store.treatments += [treatment(number, 50, eventType=f"kind {number}") for number in range(300, 320)]
    store.treatments += [treatment(number, 0, created_at=str(1500000000000 + number)) for number in range(400, 440)]
    tick = make_tick(max_count=15)
    assert tick().landed == 360
    assert len(tick.rows("nightscout_id")) == 360


def test_pruning_on_the_server_does_not_prune_the_lake(
    make_tick: Callable[..., Tick], store: DemoStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.treatments += [treatment(number, number * 5 + 1) for number in range(60)]
    tick = make_tick()
    tick()
    remove(store, *range(10, 60))
    report = tick()
    assert (report.deletions, report.retained) == (0, 50)
    assert "50 of 60 documents of treatments" in caplog.text
    assert make_tick(accept_mass_deletions=True)().deletions == 50


def test_a_cut_through_a_window_is_pruning_where_nothing_older_is_left(
    make_tick: Callable[..., Tick], store: DemoStore
) -> None:
    store.treatments += [treatment(number, number * 5 + 1) for number in range(100)]
    tick = make_tick()
    tick()
    remove(store, *range(70, 100))
    report = tick()
    assert (report.deletions, report.retained) == (0, 30)
    assert tick.rows("count(*)", "is_deleted") == [(0,)]


def test_many_deletions_with_older_ones_left_are_followed(make_tick: Callable[..., Tick], store: DemoStore) -> None:
    store.treatments += [treatment(number, number * 5 + 1) for number in range(100)]
    tick = make_tick()
    tick()
    remove(store, *range(70, 99))
    assert tick().deletions == 29


def test_a_first_read_that_is_killed_goes_on_where_it_was(
    make_tick: Callable[..., Tick], store: DemoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.treatments += [treatment(number, number * DAY_MINUTES + 1) for number in range(200)]
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


def test_what_the_server_makes_of_a_post_is_what_lands(settings: Settings, lake: Lake) -> None:
    options = DemoOptions(tokens={TOKEN: "admin"})
    with DemoServer(DemoStore(), options) as server:
        url = f"{server.url}/api/v1/treatments.json"
        document = {"eventType": "Meal Bolus", "created_at": NOW.isoformat(), "insulin": 3, "carbs": 30, "preBolus": 15}
        httpx.post(url, json=document, headers={"api-secret": TOKEN}).raise_for_status()
        tick = Tick(settings, lake, server.url)
        tick()
        both = tick.rows("treatment_timestamp, insulin_units, carbs_g")
        assert both == [(NOW, 3.0, None), (NOW + timedelta(minutes=15), None, 30.0)]
        httpx.post(url, json={**document, "insulin": 4}, headers={"api-secret": TOKEN}).raise_for_status()
        httpx.delete(f"{url}?find[carbs][$gte]=1&find[created_at][$gte]=2000", headers={"api-secret": TOKEN})
        report = tick()
        assert (report.landed, report.deletions) == (1, 1)
        assert tick.rows("insulin_units, is_deleted") == [(4.0, False), (None, True)]


def test_api_v3_names_old_days_that_changed(settings: Settings, lake: Lake) -> None:
    store = DemoStore(treatments=[treatment(number, number * DAY_MINUTES + 1) for number in range(100)])
    with DemoServer(store, DemoOptions(tokens={TOKEN: "admin"})) as server:
        tick = Tick(settings, lake, server.url, reread_days_per_tick=0)
        tick.site = Site("anna", server.url, timezone="UTC", token=Settings(NIGHTSCOUT_TOKEN=TOKEN).nightscout_token)
        tick()
        modified = int(NOW.timestamp() * 1000)
        store.treatments[70] = {**store.treatments[70], "isValid": False, "srvModified": modified}
        tick()
        assert tick.rows("nightscout_id", "is_deleted") == [(f"{70:024x}",)]


def test_zoned_times_of_a_server_that_denormalizes_are_the_same_instants(settings: Settings, lake: Lake) -> None:
    store = DemoStore(
        treatments=[treatment(n, n * DAY_MINUTES + 1, utcOffset=offset) for n, offset in enumerate([-600, 0, 840, 120])]
    )
    with DemoServer(store, DemoOptions(denormalize_dates=True)) as server:
        tick = Tick(settings, lake, server.url, reread_days_per_tick=10)
        tick()
        assert tick.rows("utc_offset_minutes, treatment_timestamp") == sorted(
            (offset, NOW - timedelta(minutes=n * DAY_MINUTES + 1)) for n, offset in enumerate([-600, 0, 840, 120])
        )
        for _ in range(3):
            assert tick.read().deletions == 0


@pytest.mark.parametrize("is_loop", [False, True])
def test_device_status_is_read_a_week_at_a_time(settings: Settings, lake: Lake, is_loop: bool) -> None:
    therapy = Therapy(Person(seed=4), is_loop=is_loop)
    store = DemoStore()
    store.device_status += therapy.device_status(NOW - timedelta(days=10), NOW)
    with DemoServer(store) as server:
        tick = Tick(settings, lake, server.url, DEVICE_STATUS)
        report = tick()
        assert report.fetched == report.landed == len(store.device_status)
        assert report.windows >= 3
        ((count, loops, least_iob, with_reservoir),) = tick.rows(
            "count(*), count(distinct loop_system), min(iob_units), count(pump_reservoir_units)"
        )
        assert (count, loops, with_reservoir) == (len(store.device_status), 1, len(store.device_status))
        assert least_iob >= 0


def test_profiles_are_one_list_with_edits_and_deletions(settings: Settings, lake: Lake) -> None:
    profiles = Therapy(Person()).profiles()
    copies = [{**profiles[0], "_id": f"{n:024x}", "startDate": f"20{n:02d}-01-01T00:00:00.000Z"} for n in range(1, 25)]
    store = DemoStore(profiles=[*profiles, *copies])
    with DemoServer(store) as server:
        tick = Tick(settings, lake, server.url, PROFILES, max_count=4)
        report = tick()
        assert (report.landed, report.history_complete) == (26, True)
        assert tick().landed == 0
        store.profiles[0] = {**store.profiles[0], "defaultProfile": "Sport"}
        store.profiles.pop(5)
        report = tick()
        assert (report.landed, report.deletions) == (1, 1)
        assert tick.rows("count(*)", "default_profile_name = 'Sport' and not is_deleted") == [(1,)]
        assert len(tick.rows("profile_id", "not is_deleted")) == 25
        # Pruned, from the oldest on: the lake keeps them. All of them gone at once, too.
        store.profiles[:] = [p for p in store.profiles if p["startDate"] >= "2005"]
        assert tick().deletions == 0
        store.profiles.clear()
        assert tick().deletions == 0
        assert len(tick.rows("profile_id", "not is_deleted")) == 25
        accepting = Tick(settings, lake, server.url, PROFILES, accept_mass_deletions=True)
        assert accepting().deletions == 25


def test_a_null_body_is_a_failure_and_deletes_nothing(settings: Settings, lake: Lake) -> None:
    store = DemoStore(treatments=[treatment(1, 5)])
    with DemoServer(store) as server:
        Tick(settings, lake, server.url)()

    async def answers_null(_: Any) -> Response:
        return Response("null", media_type="application/json")

    with DemoServer(app=Starlette(routes=[Route("/api/v1/treatments.json", answers_null)])) as broken:
        site = Site("anna", broken.url, timezone="UTC")
        impatient = settings.model_copy(update={"max_attempts": 1})
        (report,) = ingest_sites([site], impatient, lake, collection=TREATMENTS)
    assert "null" in str(report.error)
    assert (report.deletions, report.batches) == (0, ())


def test_collections_keep_their_own_batches_and_state(settings: Settings, lake: Lake) -> None:
    with DemoServer(DemoStore.of(Person(seed=2), days=3)) as server:
        site = Site("anna", server.url, timezone="UTC")
        for collection in (ENTRIES, TREATMENTS, DEVICE_STATUS, PROFILES):
            ingest_sites([site], settings, lake, collection=collection)
            process_sites([site], settings, lake, collection)
    for collection in (ENTRIES, TREATMENTS, DEVICE_STATUS, PROFILES):
        assert load_state(lake, "anna", collection).fetched > 0
        assert lake.list_files(raw_folder("anna", collection))
    with open_warehouse(settings) as warehouse:
        off = warehouse.execute("select * from ops.batches where documents <> stored + duplicates + quarantined")
        assert off.fetchall() == []
        assert warehouse.execute("select count(distinct collection) from ops.batches").fetchall() == [(4,)]


@pytest.fixture
def assets() -> list[dg.AssetsDefinition]:
    from nightscout_lakehouse.defs.ingestion.nightscout_assets import (
        COLLECTION_ASSETS,
        processed_nightscout_entries,
        raw_nightscout_entries,
    )

    return [raw_nightscout_entries, processed_nightscout_entries, *COLLECTION_ASSETS]


def materialize(
    assets: list[dg.AssetsDefinition],
) -> tuple[dg.ExecuteInProcessResult, dict[str, dg.AssetCheckEvaluation]]:
    from nightscout_lakehouse.defs.resources import LakehouseResource

    result = dg.materialize(
        assets, resources={"lakehouse": LakehouseResource()}, instance=dg.DagsterInstance.ephemeral()
    )
    failed = {e.asset_key.to_user_string(): e for e in result.get_asset_check_evaluations() if not e.passed}
    return result, failed


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node(asset)
    return {key: value.value for key, value in event.metadata.items()}


def test_a_site_that_shows_entries_alone_is_read_and_said(
    assets: list[dg.AssetsDefinition], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = frozenset({"treatments", "profiles"})
    with DemoServer(DemoStore.of(Person(seed=3), days=2), DemoOptions(closed_collections=closed)) as server:
        monkeypatch.setenv("NIGHTSCOUT_URL", server.url)
        result, failed = materialize(assets)
    assert result.success
    assert failed.keys() == {"raw_nightscout_treatments", "raw_nightscout_profiles"}
    assert {evaluation.severity for evaluation in failed.values()} == {dg.AssetCheckSeverity.WARN}
    said = str(failed["raw_nightscout_treatments"].metadata["default"].value)
    assert "/api/v1/treatments.json refuses to be read (HTTP 401)" in said
    assert metadata(result, "raw_nightscout_treatments")["requests"] == 1
    assert metadata(result, "processed_nightscout_entries")["dagster/row_count"] > 500
    assert metadata(result, "processed_nightscout_device_status")["dagster/row_count"] > 500
    assert metadata(result, "processed_nightscout_treatments")["dagster/row_count"] == 0

    from nightscout_lakehouse.lib.pipeline_report import other_collections

    runs = {
        run.title: run
        for run in other_collections(
            {name: metadata(result, name) for name in (asset.key.path[-1] for asset in assets)}
        )
    }
    assert runs["device status"].rows > 500
    assert runs["treatments"].errors == (said,)


def test_a_site_that_cannot_be_read_is_not_asked_again(
    assets: list[dg.AssetsDefinition], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    with (
        DemoServer(DemoStore(profiles=Therapy(Person()).profiles())) as good,
        DemoServer(DemoStore(), DemoOptions(default_roles="denied")) as shut,
    ):
        sites = "".join(f'[[sites]]\nname = "{n}"\nurl = "{s.url}"\n' for n, s in (("good", good), ("shut", shut)))
        (tmp_path / "sites.toml").write_text(sites)
        result, failed = materialize(assets)
    assert result.success
    assert failed.keys() == {"raw_nightscout_entries"}
    reports = json.loads(json.dumps(metadata(result, "raw_nightscout_treatments")["reports"]))
    assert [report["site"] for report in reports] == ["good"]


def test_device_status_can_be_left_out(assets: list[dg.AssetsDefinition], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSCOUT_READ_DEVICE_STATUS", "false")
    with DemoServer(DemoStore.of(Person(seed=3), days=1)) as server:
        monkeypatch.setenv("NIGHTSCOUT_URL", server.url)
        result, failed = materialize(assets)
    assert result.success
    assert not failed
    assert metadata(result, "raw_nightscout_device_status")["documents_fetched"] == 0
    assert metadata(result, "raw_nightscout_treatments")["documents_fetched"] > 0
