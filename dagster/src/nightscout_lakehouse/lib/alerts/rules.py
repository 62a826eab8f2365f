"""What an alert is about, and from where on: the rules and each site's thresholds."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Rule(StrEnum):
    """What can be alerted on."""

    URGENT_LOW = "urgent_low"
    LOW = "low"
    PREDICTED_LOW = "predicted_low"
    FAST_FALL = "fast_fall"
    URGENT_HIGH = "urgent_high"
    HIGH = "high"
    FAST_RISE = "fast_rise"
    STALE = "stale"
    PIPELINE_FAILURE = "pipeline_failure"
    DATA_QUALITY = "data_quality"


# In the order of their weight, per direction: what is said of a worse one says the lesser ones too.
GLUCOSE_RULES = (
    *(Rule.URGENT_LOW, Rule.LOW, Rule.PREDICTED_LOW, Rule.FAST_FALL),
    *(Rule.URGENT_HIGH, Rule.HIGH, Rule.FAST_RISE),
)
SITE_RULES = (*GLUCOSE_RULES, Rule.STALE)
PIPELINE_RULES = (Rule.PIPELINE_FAILURE, Rule.DATA_QUALITY)

WORSE: Mapping[Rule, tuple[Rule, ...]] = {
    Rule.LOW: (Rule.URGENT_LOW,),
    Rule.PREDICTED_LOW: (Rule.URGENT_LOW, Rule.LOW),
    Rule.FAST_FALL: (Rule.URGENT_LOW, Rule.LOW),
    Rule.HIGH: (Rule.URGENT_HIGH,),
    Rule.FAST_RISE: (Rule.URGENT_HIGH, Rule.HIGH),
}

# Nobody is told of a rule again before this has passed, whatever happens in between.
COOL_DOWN: Mapping[Rule, timedelta] = {
    Rule.URGENT_LOW: timedelta(minutes=15),
    Rule.LOW: timedelta(minutes=30),
    Rule.PREDICTED_LOW: timedelta(minutes=30),
    Rule.FAST_FALL: timedelta(minutes=30),
    Rule.URGENT_HIGH: timedelta(minutes=30),
    Rule.HIGH: timedelta(hours=1),
    Rule.FAST_RISE: timedelta(hours=1),
    Rule.STALE: timedelta(hours=1),
    Rule.PIPELINE_FAILURE: timedelta(hours=1),
    Rule.DATA_QUALITY: timedelta(hours=1),
}
# While an episode lasts, it is told again after this: later, where it is known by now and seldom dangerous.
REMIND_AFTER: Mapping[Rule, timedelta] = {
    **COOL_DOWN,
    Rule.URGENT_HIGH: timedelta(hours=1),
    Rule.HIGH: timedelta(hours=2),
    Rule.STALE: timedelta(hours=4),
    Rule.PIPELINE_FAILURE: timedelta(hours=4),
    Rule.DATA_QUALITY: timedelta(hours=4),
}
# What someone has to see to; the others inform.
ESCALATING = frozenset(
    {Rule.URGENT_LOW, Rule.LOW, Rule.URGENT_HIGH, Rule.STALE, Rule.PIPELINE_FAILURE, Rule.DATA_QUALITY}
)
# Who acknowledged an urgent low and fell asleep again is told again after this.
LONGEST_URGENT_LOW_ACKNOWLEDGEMENT = timedelta(hours=1)

# An episode is over when the readings of so many minutes are all on the right side (Danne et al., Diabetes Care 2017).
# Two minutes to spare, since sensors are early or late, and readings of a sensor that sends every 15 minutes are two.
REARM_WINDOW = timedelta(minutes=17)
LEAST_REARM_SPAN = timedelta(minutes=9)
# A reading that is dated later than this is the work of a wrong clock.
FUTURE_TOLERANCE = timedelta(minutes=2)
PREDICTION_HORIZON = timedelta(minutes=30)
# A prediction is made at every tick of the pipeline.
OLDEST_PREDICTION = timedelta(minutes=40)


class AlertRules(BaseModel):
    """Thresholds of one site; the table `[sites.alerts]` of `sites.toml`.

    Attributes:
        urgent_low_mg_dl: Below it: urgent low.
        low_mg_dl: Below it: low.
        high_mg_dl: Above it: high.
        urgent_high_mg_dl: Above it: urgent high.
        fast_change_mg_dl_per_minute: Rise or fall over about 15 minutes.
        rearm_mg_dl: How far on the right side of a threshold an alert is over and can come again.
        stale_minutes: Alert after so long without a reading; 0 for never; None: `LAKEHOUSE_STALE_MINUTES`.
        quiet_from: Beginning of the quiet hours, `HH:MM` in the site's time zone; None for none.
        quiet_to: Their end.
        escalate_minutes: How long nobody may acknowledge; None: `LAKEHOUSE_ALERT_ESCALATE_MINUTES`.
        off: Rules that are not wanted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    urgent_low_mg_dl: float = Field(54, ge=40, le=80)
    low_mg_dl: float = Field(70, ge=40, le=120)
    high_mg_dl: float = Field(250, ge=120, le=400)
    urgent_high_mg_dl: float = Field(300, ge=120, le=500)
    fast_change_mg_dl_per_minute: float = Field(3, ge=1, le=10)
    rearm_mg_dl: float = Field(10, ge=0, le=40)
    stale_minutes: int | None = Field(None, ge=0, le=7 * 24 * 60)
    quiet_from: time | None = None
    quiet_to: time | None = None
    escalate_minutes: int | None = Field(None, ge=1, le=24 * 60)
    off: tuple[Rule, ...] = ()

    @field_validator("off", mode="after")
    @classmethod
    def _of_a_site(cls, value: tuple[Rule, ...]) -> tuple[Rule, ...]:
        unknown = [rule.value for rule in value if rule not in SITE_RULES]
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is no rule of a site")
        return value

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        levels = [self.urgent_low_mg_dl, self.low_mg_dl, self.high_mg_dl, self.urgent_high_mg_dl]
        if levels != sorted(levels) or self.low_mg_dl + self.rearm_mg_dl > self.high_mg_dl - self.rearm_mg_dl:
            raise ValueError("thresholds have to rise from urgent_low to urgent_high, with room for rearm_mg_dl")
        if (self.quiet_from is None) != (self.quiet_to is None):
            raise ValueError("quiet_from and quiet_to go together")
        return self

    def is_quiet(self, local: time) -> bool:
        """Whether a local time of day is in the quiet hours; they may pass midnight."""
        if self.quiet_from is None or self.quiet_to is None:
            return False
        if self.quiet_from <= self.quiet_to:
            return self.quiet_from <= local < self.quiet_to
        return local >= self.quiet_from or local < self.quiet_to


DEFAULT_RULES = AlertRules()


@dataclass(frozen=True)
class Reading:
    """A reading that counts: neither refused nor deleted, nor of the future.

    Attributes:
        timestamp: When it was measured, UTC.
        glucose_mg_dl: Its value.
        device: Which uploader sent it.
        said: `LOW` or `HIGH` where the sensor said that in place of a number; the value is then the nearest one beyond
            what sensors measure.
    """

    timestamp: datetime
    glucose_mg_dl: float
    device: str = ""
    said: str = ""


@dataclass(frozen=True)
class Prediction:
    """The lowest point of a forecast within the horizon.

    Attributes:
        made_at: Time of the newest reading that it was made from, UTC.
        timestamp: When the value is expected, UTC.
        glucose_mg_dl: The expected value.
    """

    made_at: datetime
    timestamp: datetime
    glucose_mg_dl: float


@dataclass(frozen=True)
class Look:
    """What a look at a site found.

    Attributes:
        readings: Of the last hour or longer, in the order of time.
        error: Why the server could not be read; empty if it was.
        refused: Reasons for which documents newer than the newest reading were refused.
        prediction: The lowest point of a forecast, where there is one.
    """

    readings: tuple[Reading, ...] = ()
    error: str = ""
    refused: tuple[str, ...] = ()
    prediction: Prediction | None = None
