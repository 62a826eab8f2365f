"""Looks at every server each minute, whatever the pipeline does."""

import dagster as dg

from nightscout_lakehouse.lib.settings import load_settings

SECONDS = 60


@dg.sensor(
    name="glucose_alerts",
    minimum_interval_seconds=SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Reads the newest entries of each server and tells of lows, highs, fast changes and silence by "
    "LAKEHOUSE_ALERT_URLS; delivers what could not be delivered before. It starts no run and does not touch the lake.",
)
def glucose_alerts(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Look at every site once, and say what came of it."""
    from nightscout_lakehouse.lib.alerts.watch import watch_once

    watched = watch_once(load_settings())
    if watched.told or watched.undelivered:
        context.log.warning("%s", watched)
    return dg.SkipReason(str(watched))
