"""What the AGP page says, and the files that it is written to; the figures are given by hand."""

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from pypdf import PdfReader

from nightscout_lakehouse.lib.agp_report import AgpReport, CurvePoint, ProfilePoint, RangeShare, Unit, write_report
from nightscout_lakehouse.lib.agp_report.content import (
    hours_a_day,
    pct_text,
    range_bounds,
    range_targets,
    statistics,
)
from nightscout_lakehouse.lib.agp_report.page import draw_page
from nightscout_lakehouse.lib.errors import LakehouseError

END = date(2026, 11, 1)
SHARES = {"very_low": 0.5, "low": 2.5, "in_range": 72.0, "high": 20.0, "very_high": 5.0}


def shares(**changed: float) -> tuple[RangeShare, ...]:
    return tuple(RangeShare(name, pct) for name, pct in (SHARES | changed).items())


REPORT = AgpReport(
    site="anna",
    timezone="Europe/Berlin",
    start_date=END - timedelta(days=13),
    end_date=END,
    days_with_readings=14,
    reading_count=3_900,
    active_pct=96.7,
    is_sufficient=True,
    mean_mg_dl=150.0,
    sd_mg_dl=54.0,
    cv_pct=36.0,
    gmi_pct=6.898,
    gri=30.2,
    gri_zone="B",
    ranges=shares(),
    curve=tuple(CurvePoint(minute + 7.5, 70.0, 110.0, 150.0, 190.0, 260.0) for minute in range(0, 1440, 15)),
    profiles={
        END - timedelta(days=back): tuple(
            ProfilePoint(datetime(2026, 11, 1) - timedelta(days=back) + timedelta(minutes=15 * n), 60.0 + 2 * n)  # noqa: DTZ001
            for n in range(96)
        )
        for back in range(14)
    },
    made_at=datetime(2026, 11, 1, 20, 0, tzinfo=UTC),
)


@pytest.mark.parametrize(
    ("name", "mg_dl", "mmol_l"),
    [
        ("very_low", "< 54 mg/dL", "< 3.0 mmol/L"),
        ("low", "54 to 69 mg/dL", "3.0 to 3.8 mmol/L"),
        ("in_range", "70 to 180 mg/dL", "3.9 to 10.0 mmol/L"),
        ("high", "181 to 250 mg/dL", "10.1 to 13.9 mmol/L"),
        ("very_high", "> 250 mg/dL", "> 13.9 mmol/L"),
    ],
)
def test_the_bounds_are_those_of_the_consensus_in_both_units(name: str, mg_dl: str, mmol_l: str) -> None:
    assert range_bounds(name, Unit.MG_DL) == mg_dl
    assert range_bounds(name, Unit.MMOL_L) == mmol_l


def targets(report: AgpReport) -> dict[str, bool | None]:
    return {line.target: line.is_met for line in [*range_targets(report, Unit.MG_DL), *statistics(report, Unit.MG_DL)]}


def test_targets_at_their_bounds() -> None:
    # 72 % in range, 25 % above 180 (not below 25), 5 % above 250 (not below 5), 3 % below 70, 0.5 % below 54, CV 36.
    expected = {"> 70 %": True, "< 25 %": False, "< 5 %": False, "< 4 %": True, "< 1 %": True, "≤ 36 %": True}
    assert {target: met for target, met in targets(REPORT).items() if target} == expected
    other = replace(REPORT, ranges=shares(in_range=70.0, high=19.9, very_high=4.9, low=3.0, very_low=1.0), cv_pct=36.01)
    assert {target: met for target, met in targets(other).items() if target} == {
        "> 70 %": False,
        "< 25 %": True,
        "< 5 %": True,
        "< 4 %": False,
        "< 1 %": False,
        "≤ 36 %": False,
    }


@pytest.mark.parametrize(
    ("pct", "bound", "text"),
    [(0.98, 1, "0.98 %"), (0.998, 1, "0.998 %"), (1.0, 1, "1.0 %"), (70.04, 70, "70.04 %"), (69.9, 70, "69.9 %")],
)
def test_a_printed_share_shows_on_which_side_of_its_target_it_lies(pct: float, bound: float, text: str) -> None:
    assert pct_text(pct, bound) == text


def test_values_in_both_units() -> None:
    assert [line.value for line in statistics(REPORT, Unit.MG_DL)] == [
        "150 mg/dL",
        "54 mg/dL",
        "6.9 %",
        "36.0 %",
        "30, zone B",
    ]
    assert [line.value for line in statistics(REPORT, Unit.MMOL_L)][:2] == ["8.3 mmol/L", "3.0 mmol/L"]
    assert [line.name for line in range_targets(REPORT, Unit.MMOL_L)] == [
        "Above 13.9 mmol/L",
        "Above 10.0 mmol/L",
        "In range, 3.9 to 10.0 mmol/L",
        "Below 3.9 mmol/L",
        "Below 3.0 mmol/L",
    ]


def test_what_is_not_known_is_said_so() -> None:
    one = replace(REPORT, sd_mg_dl=None, cv_pct=None)
    lines = {line.name: line for line in statistics(one, Unit.MG_DL)}
    assert lines["Standard deviation"].value == "none"
    assert (lines["Variability (CV)"].value, lines["Variability (CV)"].is_met) == ("none", None)


def test_intervals_stand_beside_their_figures() -> None:
    report = replace(REPORT, intervals={"time_in_range_pct": (68.14, 75.9), "gmi_pct": (6.7, 7.1), "gri": (25.0, 36.0)})
    notes = {line.name: line.note for line in [*statistics(report, Unit.MG_DL), *range_targets(report, Unit.MG_DL)]}
    assert notes["In range, 70 to 180 mg/dL"] == "68.1 to 75.9"
    assert notes["Glucose management indicator (GMI)"] == "6.7 to 7.1"
    assert notes["Mean glucose"] == ""


def test_shares_as_time() -> None:
    found = [hours_a_day(pct) for pct in (0, 1, 4.16, 50, 100)]
    assert found == ["0 min", "14 min", "1 h 00 min", "12 h 00 min", "24 h 00 min"]


def pdf_text(path: Path) -> str:
    reader = PdfReader(path)
    assert len(reader.pages) == 1
    width, height = (float(side) for side in reader.pages[0].mediabox[2:])
    assert (width, height) == pytest.approx((595, 842), abs=1)
    return str(reader.pages[0].extract_text())


def test_the_pdf_is_one_page_of_a4_with_text_that_can_be_found(tmp_path: Path) -> None:
    pdf, page = write_report(REPORT, Unit.MG_DL, tmp_path / "new" / "folder")
    assert (pdf.name, page.name) == ("agp-anna-2026-11-01-14d.pdf", "agp-anna-2026-11-01-14d.html")
    text = pdf_text(pdf)
    for words in (
        "Ambulatory glucose profile",
        "anna",
        "19 Oct 2026 to 01 Nov 2026",
        "150 mg/dL",
        "72.0 %",
        "not for dosing decisions",
        "3,900 readings",
    ):
        assert words in text
    assert "Too little data" not in text
    assert "95 % interval" not in text
    assert PdfReader(pdf).metadata["/Title"] == "AGP report of anna, 2026-10-19 to 2026-11-01"  # type: ignore[index]


def test_the_page_says_that_there_is_too_little_data(tmp_path: Path) -> None:
    few = replace(REPORT, is_sufficient=False, curve=(), profiles={}, start_date=END, days_with_readings=1)
    pdf, _ = write_report(few, Unit.MMOL_L, tmp_path)
    text = pdf_text(pdf)
    assert "Too little data for firm figures" in text
    assert "Too few days for a profile" in text
    assert "no readings" in text
    assert "mmol/L" in text


@pytest.mark.parametrize("site", ["<b>bold</b> & co", "a" * 63, "a$b$c", "--><script>"])
def test_the_page_stands_alone_and_shows_names_as_they_are(site: str, tmp_path: Path) -> None:
    _, page = write_report(replace(REPORT, site=site), Unit.MG_DL, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert page.parent == tmp_path
    assert re.findall(r"https?://", text) == []
    assert re.findall(r"(?:src|href)=\"(?!#)", text) == []
    assert "<script" not in text
    assert "<b>" not in text
    assert text.count("<svg") == text.count("</svg>") == 1
    assert "not for dosing decisions" in text


def test_no_line_runs_over_a_gap() -> None:
    nothing = {"p5": None, "p25": None, "p50": None, "p75": None, "p95": None}
    readings = REPORT.profiles[END]
    with_gap = replace(
        REPORT,
        curve=tuple(replace(p, **nothing) if 300 < p.minute_of_day < 400 else p for p in REPORT.curve),
        profiles={END: (*readings[:20], *readings[30:40], readings[60])},
    )
    axes = {axes.get_title(loc="left"): axes for axes in draw_page(with_gap, Unit.MG_DL).axes}
    drawn = {
        title: [list(line.get_xdata()) for line in axes[title].lines if line.get_color() == "#17508a"]
        for title in ("Profile by time of day", "Sun 01 Nov", "Sat 31 Oct")
    }
    assert [(line[0], line[-1]) for line in drawn["Profile by time of day"]] == [(7.5, 292.5), (412.5, 1432.5)]
    assert [(line[0], line[-1]) for line in drawn["Sun 01 Nov"]] == [(0, 285), (450, 585), (900, 900)]
    assert drawn["Sat 31 Oct"] == []


def test_values_beyond_the_axis_are_drawn(tmp_path: Path) -> None:
    high = replace(
        REPORT,
        curve=tuple(CurvePoint(minute, 300.0, 350.0, 400.0, 450.0, 520.0) for minute in range(0, 1440, 15)),
        profiles={END: tuple(ProfilePoint(point.local_time, 600.0) for point in REPORT.profiles[END])},
    )
    pdf, _ = write_report(high, Unit.MG_DL, tmp_path)
    assert "600" in pdf_text(pdf)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LakehouseError, match="cannot be written"):
        write_report(REPORT, Unit.MG_DL, tmp_path / "file")
