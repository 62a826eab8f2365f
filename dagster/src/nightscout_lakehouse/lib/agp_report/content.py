"""What an AGP report says, apart from how it looks and where it comes from.

Source of the content and its order: the ambulatory glucose profile of the International Consensus on Time in Range
(Battelino et al., Diabetes Care 2019).
"""

from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum

# Nightscout's own factor.
MG_DL_PER_MMOL_L = 18.01559


class Unit(StrEnum):
    """The unit that glucose is shown in."""

    MG_DL = "mg/dL"
    MMOL_L = "mmol/L"

    def of(self, mg_dl: float) -> float:
        """A concentration in this unit."""
        return mg_dl if self is Unit.MG_DL else mg_dl / MG_DL_PER_MMOL_L

    def text(self, mg_dl: float) -> str:
        """A concentration as it is printed: whole mg/dL, or mmol/L with one decimal."""
        return f"{self.of(mg_dl):.0f}" if self is Unit.MG_DL else f"{self.of(mg_dl):.1f}"


@dataclass(frozen=True)
class RangeShare:
    """The share of readings in one of the five ranges.

    Attributes:
        name: `very_low`, `low`, `in_range`, `high` or `very_high`.
        pct: Share in percent.
    """

    name: str
    pct: float


@dataclass(frozen=True)
class CurvePoint:
    """Percentiles of glucose at a time of day, mg/dL.

    Attributes:
        minute_of_day: Minutes since local midnight.
        p5: 5th percentile; None where too few readings are there for it.
        p25: 25th percentile.
        p50: Median.
        p75: 75th percentile.
        p95: 95th percentile.
    """

    minute_of_day: float
    p5: float | None
    p25: float | None
    p50: float | None
    p75: float | None
    p95: float | None


@dataclass(frozen=True)
class ProfilePoint:
    """A reading as wall-clock time and mg/dL."""

    local_time: datetime
    glucose_mg_dl: float


@dataclass(frozen=True)
class AgpReport:
    """Everything on the page. Glucose is in mg/dL, days are those of the site's time zone.

    Attributes:
        site: Name of the site.
        timezone: IANA name of its time zone.
        start_date: First local day.
        end_date: Last local day.
        days_with_readings: Days of the period that have any reading.
        reading_count: Readings of the period.
        active_pct: Readings present of those expected, in percent.
        is_sufficient: Whether the consensus takes the period's figures as sufficient (14 days, 70 %).
        mean_mg_dl: Mean glucose; None without readings.
        sd_mg_dl: Standard deviation.
        cv_pct: Coefficient of variation.
        gmi_pct: Glucose management indicator.
        gri: Glycemia risk index, 0 to 100.
        gri_zone: Its zone, A to E.
        ranges: The five ranges.
        intervals: 95 % intervals by metric: `time_in_range_pct`, `gmi_pct`, `gri`.
        curve: The profile by time of day.
        profiles: Readings by local day, for the thumbnails.
        made_at: When the report was made, UTC.
    """

    site: str
    timezone: str
    start_date: date
    end_date: date
    days_with_readings: int
    reading_count: int
    active_pct: float
    is_sufficient: bool
    mean_mg_dl: float | None
    sd_mg_dl: float | None
    cv_pct: float | None
    gmi_pct: float | None
    gri: float | None
    gri_zone: str | None
    ranges: tuple[RangeShare, ...]
    curve: tuple[CurvePoint, ...]
    profiles: dict[date, tuple[ProfilePoint, ...]]
    made_at: datetime
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def days(self) -> int:
        """Length of the period in days."""
        return (self.end_date - self.start_date).days + 1

    def share(self, *names: str) -> float:
        """Share of the readings in the named ranges together, in percent."""
        return sum(share.pct for share in self.ranges if share.name in names)


@dataclass(frozen=True)
class Statistic:
    """One line of the statistics: what, how much, and what the consensus aims at.

    Attributes:
        name: What it is.
        value: As printed, with its unit.
        target: The target as printed; empty if the consensus names none.
        is_met: Whether the target is met; None without one, or without a value.
        note: Its 95 % interval, where there is one.
    """

    name: str
    value: str
    target: str = ""
    is_met: bool | None = None
    note: str = ""


# Names, colours and bounds (mg/dL) of the ranges, from the lowest to the highest.
RANGES = {
    "very_low": ("Very low", "#9a1b1f", None, 54.0),
    "low": ("Low", "#dc3a3f", 54.0, 70.0),
    "in_range": ("In range", "#5aa454", 70.0, 180.0),
    "high": ("High", "#f2c40f", 180.0, 250.0),
    "very_high": ("Very high", "#e8870e", 250.0, None),
}

NOT_FOR_DOSING = "For insight, not for dosing decisions; it does not replace the sensor's own alarms."


def range_bounds(name: str, unit: Unit) -> str:
    """The bounds of a range as printed, e.g. `70 to 180 mg/dL`; both belong to it."""
    _, _, low, high = RANGES[name]
    step = 1 if unit is Unit.MG_DL else 0.1 * MG_DL_PER_MMOL_L
    if low is None:
        return f"< {unit.text(high or 0)} {unit}"
    if high is None:
        return f"> {unit.text(low)} {unit}"
    # 70 and 180 are in range, 54 is low, 250 is high.
    lower = low + step if name == "high" else low
    upper = high - step if name == "low" else high
    return f"{unit.text(lower)} to {unit.text(upper)} {unit}"


def statistics(report: AgpReport, unit: Unit) -> list[Statistic]:
    """The lines of the statistics, with the targets for adults with type 1 or type 2 diabetes (Battelino 2019)."""
    none = "none"
    mean = none if report.mean_mg_dl is None else f"{unit.text(report.mean_mg_dl)} {unit}"
    sd = none if report.sd_mg_dl is None else f"{unit.text(report.sd_mg_dl)} {unit}"
    return [
        Statistic("Mean glucose", mean),
        Statistic("Standard deviation", sd),
        Statistic(
            "Glucose management indicator (GMI)",
            none if report.gmi_pct is None else f"{report.gmi_pct:.1f} %",
            note=_interval(report, "gmi_pct"),
        ),
        Statistic(
            "Variability (CV)",
            none if report.cv_pct is None else pct_text(report.cv_pct, 36),
            "≤ 36 %",
            None if report.cv_pct is None else report.cv_pct <= 36,
        ),
        Statistic(
            "Glycemia risk index (GRI)",
            none if report.gri is None else f"{report.gri:.0f}, zone {report.gri_zone}",
            note=_interval(report, "gri"),
        ),
    ]


def range_targets(report: AgpReport, unit: Unit) -> list[Statistic]:
    """The ranges that the consensus names targets for, from high to low."""
    if not report.ranges:
        return []

    def line(name: str, names: tuple[str, ...], target: str, bound: float, metric: str = "") -> Statistic:
        pct = report.share(*names)
        is_met = pct > bound if target.startswith(">") else pct < bound
        return Statistic(name, pct_text(pct, bound), target, is_met, _interval(report, metric))

    text = unit.text
    return [
        line(f"Above {text(250)} {unit}", ("very_high",), "< 5 %", 5),
        line(f"Above {text(180)} {unit}", ("high", "very_high"), "< 25 %", 25),
        line(f"In range, {text(70)} to {text(180)} {unit}", ("in_range",), "> 70 %", 70, "time_in_range_pct"),
        line(f"Below {text(70)} {unit}", ("very_low", "low"), "< 4 %", 4),
        line(f"Below {text(54)} {unit}", ("very_low",), "< 1 %", 1),
    ]


def pct_text(pct: float, bound: float) -> str:
    """A percentage as printed, with as many digits as show on which side of its target it lies."""
    text = f"{pct:.1f} %"
    for digits in (2, 3):
        if float(text.removesuffix(" %")) == bound != pct:
            text = f"{pct:.{digits}f} %"
    return text


def hours_a_day(pct: float) -> str:
    """A share as time of a day with readings all through."""
    minutes = round(pct / 100 * 24 * 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest:02d} min" if hours else f"{rest} min"


def _interval(report: AgpReport, metric: str) -> str:
    bounds = report.intervals.get(metric)
    return f"{bounds[0]:.1f} to {bounds[1]:.1f}" if bounds else ""
