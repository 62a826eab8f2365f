"""How the page looks: one A4 sheet, drawn once for PDF and HTML."""

import math
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nightscout_lakehouse.lib.agp_report.content import (
    NOT_FOR_DOSING,
    RANGES,
    AgpReport,
    CurvePoint,
    ProfilePoint,
    Statistic,
    Unit,
    hours_a_day,
    range_bounds,
    range_targets,
    statistics,
)

_A4_INCHES = (8.27, 11.69)
_INK = "#222222"
_FAINT = "#6b6b6b"
_ALARM = "#9a1b1f"
_GRID = "#d9d9d9"
_TARGET_COLOUR = RANGES["in_range"][1]
_LOWEST_MG_DL, _HIGHEST_MG_DL = 40.0, 350.0
_THUMBNAILS = 14
_LARGEST_GAP_MINUTES = 20


def draw_page(report: AgpReport, unit: Unit) -> Figure:
    """Draw the report.

    Args:
        report: What to show.
        unit: In which unit; the report itself is in mg/dL.
    """
    figure = Figure(figsize=_A4_INCHES)
    figure.patch.set_facecolor("white")
    _header(figure, report)
    _statistics(figure.add_axes((0.06, 0.69, 0.49, 0.19)), report, unit)
    _range_bar(figure.add_axes((0.61, 0.69, 0.33, 0.19)), report, unit)
    _curve(figure.add_axes((0.10, 0.375, 0.84, 0.265)), report, unit)
    _thumbnails(figure, report, unit)
    figure.text(0.06, 0.018, _footer(report), fontsize=7, color=_FAINT, va="bottom")
    return figure


def _header(figure: Figure, report: AgpReport) -> None:
    length = _counted(report.days, "day")
    period = f"{report.start_date:%d %b %Y} to {report.end_date:%d %b %Y} · {length} · {report.timezone}"
    coverage = (
        f"{report.days_with_readings} of {length} with readings · {_counted(report.reading_count, 'reading')} · "
        f"sensor active {report.active_pct:.0f} % of the time"
    )
    figure.text(0.06, 0.968, "Ambulatory glucose profile (AGP)", fontsize=14, color=_INK, weight="bold", va="top")
    # Up to 28 characters fit beside the title; a longer name is set smaller.
    size = max(7.0, 13 * min(1.0, 28 / max(1, len(report.site))))
    figure.text(0.94, 0.966, report.site, fontsize=size, color=_INK, ha="right", va="top", parse_math=False)
    figure.text(0.06, 0.941, period, fontsize=8, color=_INK, va="top")
    figure.text(0.06, 0.927, coverage, fontsize=8, color=_INK, va="top")
    if not report.is_sufficient:
        warning = "Too little data for firm figures: the consensus asks for 14 days with 70 % of the readings."
        figure.text(0.06, 0.913, warning, fontsize=8, color=_ALARM, weight="bold", va="top")


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def _statistics(axes: Axes, report: AgpReport, unit: Unit) -> None:
    _titled(axes, "Glucose statistics and targets")
    if report.intervals:
        axes.text(0.66, 1.0, "95 % interval", fontsize=7, color=_FAINT, va="center")
    axes.text(0.84, 1.0, "target", fontsize=7, color=_FAINT, va="center")
    lines: Sequence[Statistic] = [*statistics(report, unit), *range_targets(report, unit)]
    for number, line in enumerate(lines):
        height = 0.92 - number * 0.102
        axes.text(0.0, height, line.name, fontsize=7.5, color=_INK, va="center")
        axes.text(0.64, height, line.value, fontsize=7.5, color=_INK, va="center", ha="right", weight="bold")
        axes.text(0.66, height, line.note, fontsize=7, color=_FAINT, va="center")
        # Words, not colour alone: one man in twelve does not see red and green apart.
        met = {True: "met", False: "not met", None: ""}[line.is_met]
        axes.text(0.84, height, f"{line.target}  {met}", fontsize=7, va="center", color=_met_colour(line))


def _met_colour(line: Statistic) -> str:
    return {True: "#2f7a2a", False: _ALARM, None: _FAINT}[line.is_met]


def _range_bar(axes: Axes, report: AgpReport, unit: Unit) -> None:
    _titled(axes, "Time in ranges")
    shares = {share.name: share.pct for share in report.ranges}
    total = sum(shares.values())
    if not total:
        axes.text(0.5, 0.5, "no readings", fontsize=9, color=_FAINT, ha="center", va="center")
        return
    bottom, places = 0.02, []
    for name, (_, colour, _, _) in RANGES.items():
        height = 0.92 * shares.get(name, 0.0) / total
        axes.add_patch(Rectangle((0.0, bottom), 0.14, height, facecolor=colour, edgecolor="white", linewidth=0.6))
        places.append(bottom + height / 2)
        bottom += height
    for (name, (title, _, _, _)), middle, place in zip(RANGES.items(), places, _apart(places), strict=True):
        axes.plot([0.145, 0.17, 0.185], [middle, place, place], color=_FAINT, linewidth=0.5)
        pct = shares.get(name, 0.0)
        axes.text(0.22, place + 0.03, title, fontsize=8.5, color=_INK, va="center")
        axes.text(0.22, place - 0.035, range_bounds(name, unit), fontsize=7, color=_FAINT, va="center")
        axes.text(1.0, place + 0.03, f"{pct:.1f} %", fontsize=9, color=_INK, weight="bold", ha="right", va="center")
        axes.text(1.0, place - 0.035, f"{hours_a_day(pct)} a day", fontsize=7, color=_FAINT, ha="right", va="center")


def _apart(places: Sequence[float], distance: float = 0.155) -> list[float]:
    """Heights of labels from the lowest to the highest, moved apart so that none covers another."""
    moved = list(places)
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + distance)
    top = 0.93
    for index in range(len(moved) - 1, -1, -1):
        moved[index] = min(moved[index], top)
        top = moved[index] - distance
    return moved


def _curve(axes: Axes, report: AgpReport, unit: Unit) -> None:
    axes.set_title("Profile by time of day", fontsize=9.5, color=_INK, weight="bold", loc="left", pad=6)
    _glucose_axis(axes, unit, _highest(point.p95 or 0.0 for point in report.curve))
    axes.set_xlim(0, 1440)
    axes.set_xticks(range(0, 1441, 180), [f"{hour % 24:02d}:00" for hour in range(0, 25, 3)], fontsize=7.5)
    for stretch in _stretches(report.curve):
        minutes = [point.minute_of_day for point in stretch]
        for low, high, colour, label in (
            ("p5", "p95", "#c9dcef", "5 to 95 % of readings"),
            ("p25", "p75", "#8fb7de", "25 to 75 %"),
        ):
            lower = [_shown(getattr(point, low), unit) for point in stretch]
            upper = [_shown(getattr(point, high), unit) for point in stretch]
            axes.fill_between(minutes, lower, upper, color=colour, linewidth=0, label=label)
        axes.plot(minutes, [_shown(p.p50, unit) for p in stretch], color="#17508a", linewidth=1.8, label="median")
    if report.curve:
        labels = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        # Above the axes, where no band can run below it.
        axes.legend(
            list(labels.values()),
            list(labels),
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            borderaxespad=0.2,
            fontsize=7,
            ncols=3,
            frameon=False,
        )
    else:
        too_few = "Too few days for a profile: each time of day needs readings of 5 days."
        axes.text(720, unit.of(220), too_few, fontsize=9, color=_FAINT, ha="center")


def _shown(mg_dl: float | None, unit: Unit) -> float:
    return float("nan") if mg_dl is None else unit.of(mg_dl)


def _stretches(curve: Sequence[CurvePoint]) -> list[list[CurvePoint]]:
    """The curve in pieces, broken where times of day have too few readings."""
    step = min((after.minute_of_day - before.minute_of_day for before, after in pairwise(curve)), default=0.0)
    pieces: list[list[CurvePoint]] = []
    for point in curve:
        if point.p50 is None:
            continue
        if not pieces or point.minute_of_day - pieces[-1][-1].minute_of_day > 1.5 * step:
            pieces.append([])
        pieces[-1].append(point)
    return pieces


def _thumbnails(figure: Figure, report: AgpReport, unit: Unit) -> None:
    days = [report.end_date - timedelta(days=back) for back in range(min(_THUMBNAILS, report.days))][::-1]
    heading = f"Daily profiles, last {len(days)} days" if len(days) > 1 else "Daily profile"
    figure.text(0.06, 0.318, heading, fontsize=9.5, color=_INK, weight="bold")
    highest = _highest(point.glucose_mg_dl for day in days for point in report.profiles.get(day, ()))
    # Rows of seven: a day of the week has its own column.
    for number, day in enumerate(days):
        row, column = divmod(number, 7)
        axes = figure.add_axes((0.10 + column * 0.1212, 0.196 - row * 0.127, 0.1142, 0.098))
        _thumbnail(axes, day, report.profiles.get(day, ()), unit, highest)
        axes.set_xticks([0, 720, 1440], ["00", "12", "24"], fontsize=7)
        first, _, last = axes.get_xticklabels()
        first.set_horizontalalignment("left")
        last.set_horizontalalignment("right")
        if column == 0:
            axes.set_yticks([unit.of(70), unit.of(180)], [unit.text(70), unit.text(180)], fontsize=7)


def _thumbnail(axes: Axes, day: date, profile: Sequence[ProfilePoint], unit: Unit, highest: float) -> None:
    axes.set_title(f"{day:%a %d %b}", fontsize=7, color=_INK, pad=2, loc="left")
    _glucose_axis(axes, unit, highest, with_labels=False)
    axes.set_xlim(0, 1440)
    for stretch in _unbroken(profile):
        minutes = [point.local_time.hour * 60 + point.local_time.minute for point in stretch]
        values = [unit.of(min(max(point.glucose_mg_dl, _LOWEST_MG_DL), highest)) for point in stretch]
        high, low = unit.of(180), unit.of(70)
        above, below = [max(value, high) for value in values], [min(value, low) for value in values]
        axes.fill_between(minutes, high, above, color=RANGES["high"][1], alpha=0.5, linewidth=0)
        axes.fill_between(minutes, low, below, color=RANGES["low"][1], alpha=0.6, linewidth=0)
        # A reading on its own is no line; without a mark it would not be seen.
        marker = "." if len(stretch) == 1 else ""
        axes.plot(minutes, values, color="#17508a", linewidth=0.8, marker=marker, markersize=3, clip_on=not marker)
    if not profile:
        axes.text(720, unit.of(210), "no readings", fontsize=7, color=_FAINT, ha="center", va="center")


def _unbroken(profile: Sequence[ProfilePoint]) -> list[list[ProfilePoint]]:
    """A day's readings in pieces: a line across a gap would show glucose that nobody measured."""
    pieces: list[list[ProfilePoint]] = []
    for point in profile:
        minutes = (point.local_time - pieces[-1][-1].local_time).total_seconds() / 60 if pieces else -1.0
        if not 0 <= minutes <= _LARGEST_GAP_MINUTES:
            pieces.append([])
        pieces[-1].append(point)
    return pieces


def _highest(glucose_mg_dl: Iterable[float]) -> float:
    """Where the axis ends: at 350 mg/dL, or at the next hundred above what is shown."""
    shown = max(glucose_mg_dl, default=0.0)
    return _HIGHEST_MG_DL if shown <= _HIGHEST_MG_DL else 100.0 * math.ceil(shown / 100)


def _glucose_axis(axes: Axes, unit: Unit, highest: float, *, with_labels: bool = True) -> None:
    axes.set_ylim(unit.of(_LOWEST_MG_DL), unit.of(highest))
    axes.axhspan(unit.of(70), unit.of(180), color=_TARGET_COLOUR, alpha=0.12, linewidth=0)
    for bound in (70, 180):
        axes.axhline(unit.of(bound), color=_TARGET_COLOUR, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_color(_GRID)
    axes.tick_params(length=2, color=_GRID, labelcolor=_INK)
    if with_labels:
        ticks = sorted({54.0, 70.0, 140.0, 180.0, 250.0, 350.0, highest})
        axes.set_yticks([unit.of(tick) for tick in ticks], [unit.text(tick) for tick in ticks], fontsize=7.5)
        axes.set_ylabel(f"glucose ({unit})", fontsize=7.5, color=_INK)
        axes.grid(axis="both", color=_GRID, linewidth=0.5)
    else:
        axes.set_yticks([unit.of(70), unit.of(180)], [])


def _titled(axes: Axes, title: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.axis("off")
    axes.set_title(title, fontsize=9.5, color=_INK, weight="bold", loc="left", pad=6, x=0.0)


def _footer(report: AgpReport) -> str:
    return (
        f"{NOT_FOR_DOSING} Percentages are of readings with a value.\n"
        f"Ranges and targets for adults with type 1 or type 2 diabetes: International Consensus on Time in Range, "
        f"Diabetes Care 2019.\nMade {report.made_at:%Y-%m-%d %H:%M} UTC by Nightscout Lakehouse."
    )
