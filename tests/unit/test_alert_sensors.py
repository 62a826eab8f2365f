"""What Dagster runs of the alerts: the look of each minute, and the ends of runs."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from alert_receivers import SECRET, HttpReceiver

from nightscout_lakehouse.defs.alerts.failure import pipeline_failure_alert, pipeline_recovery_alert
from nightscout_lakehouse.defs.alerts.glucose import glucose_alerts
from nightscout_lakehouse.defs.schedules.nightscout import nightscout_every_30_min
from nightscout_lakehouse.lib.settings import load_settings


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(str(tmp_path)) as made:
        yield made


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpReceiver]:
    with HttpReceiver() as running:
        monkeypatch.setenv("LAKEHOUSE_ALERT_URLS", running.url)
        yield running


def test_all_of_them_run_by_default() -> None:
    for sensor in (glucose_alerts, pipeline_failure_alert, pipeline_recovery_alert):
        assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert glucose_alerts.minimum_interval_seconds == 60


def test_the_look_says_what_it_did_and_reads_nothing_where_nobody_would_be_told(
    monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance, receiver: HttpReceiver
) -> None:
    # Nothing listens there: a look would name the site.
    monkeypatch.setenv("NIGHTSCOUT_URL", "http://127.0.0.1:1")
    context = dg.build_sensor_context(instance=instance, sensor_name="glucose_alerts")
    said = glucose_alerts(context)
    assert isinstance(said, dg.SkipReason)
    assert said.skip_message == "1 sites looked at, not readable: default, nothing to tell"
    monkeypatch.delenv("LAKEHOUSE_ALERT_URLS")
    said = glucose_alerts(context)
    assert isinstance(said, dg.SkipReason)
    assert said.skip_message == "LAKEHOUSE_ALERT_URLS is not set: nobody would be told."


def test_a_real_run_that_fails_by_a_step_or_a_check_is_told_and_so_is_its_success(
    instance: dg.DagsterInstance, receiver: HttpReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    fails = [True]

    @dg.asset(check_specs=[dg.AssetCheckSpec("values_are_in_mg_dl", asset="readings", blocking=True)])
    def readings() -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        yield dg.MaterializeResult()
        yield dg.AssetCheckResult(passed=not fails[0], metadata={"sites": ["anna"]}, description="3 of 3 rows.")

    @dg.asset
    def broken() -> None:
        if fails[0]:
            raise RuntimeError(f"Site anna is away; {SECRET}\nsecond line")

    def run(asset: dg.AssetsDefinition) -> dg.ExecuteInProcessResult:
        return dg.materialize([asset], instance=instance, raise_on_error=False)

    def report(result: dg.ExecuteInProcessResult) -> None:
        ends = {dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_SUCCESS}
        (end,) = [event for event in result.all_events if event.event_type in ends]
        sensor = pipeline_recovery_alert if result.success else pipeline_failure_alert
        context = dg.build_run_status_sensor_context(
            sensor_name=sensor.name, dagster_event=end, dagster_instance=instance, dagster_run=result.dagster_run
        )
        sensor(context if result.success else context.for_run_failure())

    by_step, by_check = run(broken), run(readings)
    for result in (by_step, by_check, by_step):
        report(result)
    assert [title.split(":")[0] for title in receiver.titles] == ["Pipeline failed", "Data quality check failed"]
    step, check = (str(each["message"]) for each in receiver.received)
    assert "broken: RuntimeError: Site anna is away; ***" in step
    assert "second line" not in step
    assert f"Run: {load_settings().run_url}{by_step.run_id}" in step
    assert "readings: the check values_are_in_mg_dl failed (site anna). 3 of 3 rows." in check
    ours = [record.getMessage() for record in caplog.records if record.name == "nightscout_lakehouse.alerts"]
    assert len(ours) == 3
    assert SECRET not in "".join(ours)
    fails[0] = False
    report(run(broken))
    assert [title.split(":")[0] for title in receiver.titles[2:]] == ["Over", "Over"]


def test_a_tick_behind_a_waiting_run_is_left_out() -> None:
    with dg.instance_for_test() as instance, dg.build_schedule_context(instance=instance) as context:
        job = dg.GraphDefinition("nightscout_pipeline").to_job()
        assert isinstance(nightscout_every_30_min(context), dg.RunRequest)
        instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        assert isinstance(nightscout_every_30_min(context), dg.RunRequest)
        instance.create_run_for_job(job, status=dg.DagsterRunStatus.NOT_STARTED)
        said = nightscout_every_30_min(context)
    assert isinstance(said, dg.SkipReason)
    assert said.skip_message == "A run waits already; it will read everything since the last."
