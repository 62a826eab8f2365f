"""The page that shows a validation: self-contained, since it may hold health data and has to work without a network.

Great Expectations' own Data Docs load styles and fonts from elsewhere; see docs/decisions/0010-quality-report.md.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from nightscout_lakehouse.lib.quality.stages import kept_results
from nightscout_lakehouse.lib.settings import Settings

KEPT_REPORTS = 50
_TITLES = {
    "raw": ("Documents as they came", "Before they are typed. A failure stops processing."),
    "enriched": ("Readings, enriched", "Before any reading counts. A failure stops the curated models."),
    "marts": ("Days and figures", "Before anything is published. A failure keeps it from Postgres and the dashboard."),
}


def write_report(settings: Settings, run_id: str) -> Path:
    """Write the page of a run, with the last result of each stage; older pages than the last 50 are removed.

    Returns:
        The page: `quality/reports/<time>-<run>.html`; the same stands as `quality/latest.html`.
    """
    folder = settings.quality_dir / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    # One page a run: a later stage of the run replaces the page of an earlier one.
    existing = sorted(folder.glob(f"*-{run_id[:8]}.html"))
    now = datetime.now(UTC)
    path = existing[-1] if existing else folder / f"{now:%Y%m%dT%H%M%SZ}-{run_id[:8]}.html"
    content = render(kept_results(settings), run_id, now)
    for target in (path, settings.quality_dir / "latest.html"):
        temporary = target.with_suffix(".tmp")
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(target)
    for older in sorted(folder.glob("*.html"))[:-KEPT_REPORTS]:
        older.unlink()
    return path


def render(results: list[dict[str, Any]], run_id: str, made_at: datetime) -> str:
    """The page as HTML.

    Args:
        results: As `kept_results` gives them.
        run_id: The run that the page is of; stages that it has not come to are marked.
        made_at: When, UTC.
    """
    environment = Environment(
        loader=PackageLoader("nightscout_lakehouse.lib.quality", "templates"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    stages = [
        {
            **result,
            "title": _TITLES[result["stage"]][0],
            "subtitle": _TITLES[result["stage"]][1],
            "is_of_run": result["run_id"] == run_id,
            "met": sum(outcome["is_met"] for outcome in result["outcomes"]),
            "is_blocked": any(outcome["is_blocking"] for outcome in result["outcomes"]),
        }
        for result in results
    ]
    # What stopped the run first.
    todo = sorted(
        (
            {**outcome, "stage": stage["stage"]}
            for stage in stages
            for outcome in stage["outcomes"]
            if stage["is_of_run"] and not outcome["is_met"]
        ),
        key=lambda outcome: not outcome["is_blocking"],
    )
    return environment.get_template("report.html").render(stages=stages, todo=todo, run_id=run_id, made_at=made_at)
