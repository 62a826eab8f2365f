"""From files that people drop to the raw layer."""

from collections.abc import Iterator, Sequence

import dagster as dg

from nightscout_lakehouse.defs.resources import LakehouseResource
from nightscout_lakehouse.lib.sources.file_drop import FileImport, import_drop

GROUP = "nightscout"


@dg.asset(
    group_name=GROUP,
    kinds={"python", "csv", "parquet"},
    owners=["team:data-platform"],
    # The zone of a site may be that of its server's profile, which is read there.
    deps=["raw_nightscout_entries"],
    check_specs=[
        dg.AssetCheckSpec(
            "every_file_was_read",
            asset="raw_file_drop",
            description="No dropped file failed to be read. The other files go on.",
        ),
    ],
)
def raw_file_drop(
    context: dg.AssetExecutionContext, lakehouse: LakehouseResource
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Import new and changed files of the drop folder (Clarity, LibreView, CSV) as batch files of their sites."""
    outcomes = import_drop(lakehouse.all_sites, lakehouse.settings, lakehouse.lake)
    lakehouse.recorder.files_were_imported(outcomes)
    if not any(outcome.outcome == "imported" for outcome in outcomes):
        context.log.info("No new file was dropped.")
    reports = [outcome.report for outcome in outcomes if outcome.report is not None]
    failed = [outcome for outcome in outcomes if outcome.outcome == "failed"]
    yield dg.MaterializeResult(
        metadata={
            "files": len(outcomes),
            "files_imported": sum(outcome.outcome == "imported" for outcome in outcomes),
            "files_known": sum(outcome.outcome == "known" for outcome in outcomes),
            "files_still_being_written": sum(outcome.outcome == "waiting" for outcome in outcomes),
            "files_failed": len(failed),
            "rows": sum(report.rows for report in reports),
            "documents": sum(report.documents for report in reports),
            "documents_landed": sum(report.landed for report in reports),
            "documents_unchanged": sum(report.unchanged for report in reports),
            "rows_refused": sum(sum(report.refused.values()) for report in reports),
            "rows_left_out_by_rule": sum(sum(report.left_out.values()) for report in reports),
            "outcomes": dg.MetadataValue.md(_table(outcomes)),
            "problems": dg.MetadataValue.json([outcome.message for outcome in failed]),
            "reports": dg.MetadataValue.json(
                [
                    {"site": each.site, "documents": each.report.documents, "unchanged": each.report.unchanged}
                    for each in outcomes
                    if each.report is not None and each.outcome == "imported"
                ]
            ),
        },
    )
    yield dg.AssetCheckResult(
        check_name="every_file_was_read",
        passed=not failed,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"problems": [outcome.message for outcome in failed]},
    )


def _table(outcomes: Sequence[FileImport]) -> str:
    lines = [
        "| site | file | outcome | kind | rows | readings | landed | unchanged | refused | message |",
        "|---|---|---|---|---:|---:|---:|---:|---|---|",
    ]
    for each in outcomes:
        report = each.report
        counts = (
            f"{report.rows:,} | {report.documents:,} | {report.landed:,} | {report.unchanged:,} "
            f"| {', '.join(f'{reason} {count:,}' for reason, count in report.refused.items())}"
            if report is not None
            else " | | | | "
        )
        lines.append(f"| {each.site} | {each.file} | {each.outcome} | {each.title} | {counts} | {each.message} |")
    return "\n".join(lines)
