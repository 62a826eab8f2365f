"""The report as files."""

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nightscout_lakehouse.lib.agp_report.content import (
    NOT_FOR_DOSING,
    RANGES,
    AgpReport,
    Statistic,
    Unit,
    range_bounds,
    range_targets,
    statistics,
)
from nightscout_lakehouse.lib.errors import LakehouseError


def write_report(report: AgpReport, unit: Unit, folder: Path) -> list[Path]:
    """Write the report as PDF and as one self-contained HTML page.

    Returns:
        The two files: `agp-<site>-<last day>-<days>d.pdf` and `.html`.

    Raises:
        LakehouseError: The folder cannot be written.
    """
    import matplotlib as mpl

    from nightscout_lakehouse.lib.agp_report.page import draw_page

    stem = f"agp-{_file_name(report.site)}-{report.end_date:%Y-%m-%d}-{report.days}d"
    pdf, page = folder / f"{stem}.pdf", folder / f"{stem}.html"
    with _says_if_it_cannot_be_written(folder):
        # Said before a page is drawn, which takes its time.
        folder.mkdir(parents=True, exist_ok=True)
    # Fonts as text that can be searched and read aloud in the PDF, and as outlines in the page, where none is certain.
    with mpl.rc_context({"pdf.fonttype": 42, "svg.fonttype": "path", "font.family": "DejaVu Sans"}):
        figure = draw_page(report, unit)
        drawing = io.StringIO()
        figure.savefig(drawing, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        document = io.BytesIO()
        title = f"AGP report of {report.site}, {report.start_date} to {report.end_date}"
        figure.savefig(document, format="pdf", metadata={"Title": title, "CreationDate": report.made_at})
    with _says_if_it_cannot_be_written(folder):
        pdf.write_bytes(document.getvalue())
        page.write_text(_page(report, unit, title, drawing.getvalue()), encoding="utf-8")
    return [pdf, page]


@contextmanager
def _says_if_it_cannot_be_written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LakehouseError(
            f"The report cannot be written to {folder} ({error.strerror}).", "Give --output a folder of yours."
        ) from None


def _file_name(site: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", site)


def _page(report: AgpReport, unit: Unit, title: str, drawing: str) -> str:
    # Inside HTML the drawing needs no namespaces; without them, nothing in the file looks like a link.
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawing[drawing.index("<svg") :], count=2)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>
body {{ margin: 0 auto; max-width: 60rem; padding: 1rem; font: 15px/1.5 system-ui, sans-serif; color: #222; }}
svg {{ width: 100%; height: auto; border: 1px solid #ddd; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ text-align: left; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid #ddd; }}
@media print {{ details {{ display: none; }} svg {{ border: 0; }} body {{ padding: 0; }} }}
</style>
</head>
<body>
{svg}
<details>
<summary>The figures as text</summary>
<p>{html.escape(report.site)}, {report.start_date} to {report.end_date} ({html.escape(report.timezone)}),
{report.reading_count:,} readings, sensor active {report.active_pct:.1f} % of the time.</p>
{_table([*statistics(report, unit), *range_targets(report, unit)])}
{_ranges_table(report, unit)}
<p>{NOT_FOR_DOSING}</p>
</details>
</body>
</html>
"""


def _table(lines: list[Statistic]) -> str:
    words = {True: "met", False: "not met", None: ""}
    rows = "\n".join(
        "<tr>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in (s.name, s.value, s.note, s.target, words[s.is_met]))
        + "</tr>"
        for s in lines
    )
    head = "".join(f"<th>{title}</th>" for title in ("figure", "value", "uncertainty", "target", ""))
    return f"<table>\n<tr>{head}</tr>\n{rows}\n</table>"


def _ranges_table(report: AgpReport, unit: Unit) -> str:
    rows = "\n".join(
        f"<tr><td>{RANGES[share.name][0]}</td><td>{html.escape(range_bounds(share.name, unit))}</td>"
        f"<td>{share.pct:.1f} %</td></tr>"
        for share in report.ranges
    )
    return f"<table>\n<tr><th>range</th><th>glucose</th><th>share of readings</th></tr>\n{rows}\n</table>"
