"""How a site, and the pipeline, are alerted on: their own rules, and the settings where they have none."""

from datetime import time
from zoneinfo import ZoneInfo

from nightscout_lakehouse.lib.alerts.engine import Policy
from nightscout_lakehouse.lib.alerts.rules import DEFAULT_RULES, AlertRules
from nightscout_lakehouse.lib.errors import ConfigurationError
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site, canonical_timezone


def policy_of(site: Site, settings: Settings, timezone: str) -> Policy:
    """How a site is alerted on: its own rules, and the settings where it has none."""
    rules = site.alerts
    return Policy(
        rules=with_quiet_hours(rules, settings),
        timezone=ZoneInfo(timezone),
        stale_minutes=settings.stale_minutes if rules.stale_minutes is None else rules.stale_minutes,
        escalate_minutes=_escalate_minutes(rules, settings),
        sensor_interval_minutes=site.sensor_interval_minutes,
    )


def with_quiet_hours(rules: AlertRules, settings: Settings) -> AlertRules:
    """Rules with the quiet hours of the settings, where they have none of their own.

    Raises:
        ConfigurationError: The setting holds no times of day.
    """
    if rules.quiet_from is not None or not settings.alert_quiet_hours:
        return rules
    try:
        begin, end = (time.fromisoformat(part) for part in settings.alert_quiet_hours.split("-"))
    except ValueError:
        raise ConfigurationError(
            f"LAKEHOUSE_ALERT_QUIET_HOURS {settings.alert_quiet_hours} are no times of day.", "Write 22:00-07:00."
        ) from None
    return rules.model_copy(update={"quiet_from": begin, "quiet_to": end})


def pipeline_policy(settings: Settings) -> Policy:
    """How runs are alerted on: quiet hours are those of the settings, in NIGHTSCOUT_TIMEZONE or UTC."""
    zone = canonical_timezone(settings.nightscout_timezone) if settings.nightscout_timezone else None
    return Policy(
        rules=with_quiet_hours(DEFAULT_RULES, settings),
        timezone=ZoneInfo(zone or "UTC"),
        escalate_minutes=_escalate_minutes(DEFAULT_RULES, settings),
    )


def _escalate_minutes(rules: AlertRules, settings: Settings) -> int | None:
    if not settings.alert_escalation_urls.get_secret_value().strip():
        return None
    return rules.escalate_minutes or settings.alert_escalate_minutes
