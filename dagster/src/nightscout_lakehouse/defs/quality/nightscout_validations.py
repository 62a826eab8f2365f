"""The three validations by Great Expectations: each expectation of a suite is an asset check on what it guards.

A check that is `critical` blocks: what is downstream does not run, and the run fails.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from nightscout_lakehouse.defs.resources import LakehouseResource
from nightscout_lakehouse.lib.quality.conservation import compare_with_raw_files
from nightscout_lakehouse.lib.quality.report import write_report
from nightscout_lakehouse.lib.quality.stages import (
    Stage,
    StageResult,
    keep_result,
    shown,
    stage_suite,
    validate_stage,
)
from nightscout_lakehouse.lib.quality.suites import Expectation
from nightscout_lakehouse.lib.quality.validation import Outcome
from nightscout_lakehouse.lib.redaction import Redactor

GROUP = "nightscout_quality"
# A run with this tag validates everything, not only what has changed.
FULL_TAG = "lakehouse/full_validation"

# Its materialization is the record of a validation. The checks of `int_glucose_enriched` write it, also when they fail:
# it has to be there just when somebody looks for the reason.
validate_glucose_enriched = dg.AssetSpec(
    "validate_glucose_enriched",
    deps=["int_glucose_enriched"],
    group_name=GROUP,
    kinds={"python", "greatexpectations"},
    owners=["team:data-platform"],
    description="What the validation of the enriched readings by the suite `nightscout_glucose_suite` found. "
    "Recorded by the checks of `int_glucose_enriched`.",
)


def _check_specs(stage: Stage) -> list[dg.AssetCheckSpec]:
    suite = stage_suite(stage)
    return [
        dg.AssetCheckSpec(
            item.name,
            asset=suite.guards,
            description=f"{item.why} Source: {item.source}.",
            blocking=True,
            metadata={"suite": suite.path.name, "expectation": item.type, "severity": item.severity},
        )
        for item in suite.expectations
    ]


@dg.multi_asset_check(specs=_check_specs("raw"), name="validate_raw_documents")
def validate_raw_documents(
    context: dg.AssetCheckExecutionContext, lakehouse: LakehouseResource
) -> Iterator[dg.AssetCheckResult]:
    """Documents as they came: structure, types, ids, times and units, before they are typed."""
    yield from _validate(context, lakehouse, "raw")


@dg.multi_asset_check(specs=_check_specs("enriched"), name="validate_enriched_readings")
def validate_enriched_readings(
    context: dg.AssetCheckExecutionContext, lakehouse: LakehouseResource
) -> Iterator[dg.AssetCheckResult]:
    """Readings before any of them counts."""
    yield from _validate(context, lakehouse, "enriched")


@dg.multi_asset_check(specs=_check_specs("marts"), name="validate_daily_figures")
def validate_daily_figures(
    context: dg.AssetCheckExecutionContext, lakehouse: LakehouseResource
) -> Iterator[dg.AssetCheckResult]:
    """Days and their figures before they are published."""
    yield from _validate(context, lakehouse, "marts")


@dg.asset_check(
    asset="processed_nightscout_entries",
    blocking=True,
    description="Of every processed batch of every collection, the raw file holds as many documents as are stored, "
    "duplicates or quarantined.",
)
def batches_match_raw_files(lakehouse: LakehouseResource) -> dg.AssetCheckResult:
    """Law 1 over the whole history."""
    found = compare_with_raw_files(lakehouse.settings, lakehouse.lake)
    return dg.AssetCheckResult(
        passed=not found.faults,
        severity=dg.AssetCheckSeverity.ERROR,
        description=" ".join(found.faults[:5]) or f"{found.documents:,} documents of {found.batches:,} batches agree.",
        metadata={
            "batches": found.batches,
            "documents": found.documents,
            "batches_without_accounting": found.unaccounted,
            "batches_in_archive": found.pruned,
            "faults": dg.MetadataValue.json(list(found.faults[:100])),
        },
    )


# What a tick does not do: its job is the full validation.
FULL_ONLY = dg.AssetSelection.checks(batches_match_raw_files)

nightscout_full_validation = dg.define_asset_job(
    "nightscout_full_validation",
    selection=dg.AssetSelection.checks(
        validate_raw_documents, validate_enriched_readings, validate_daily_figures, batches_match_raw_files
    ),
    tags={FULL_TAG: "true"},
    description="The three validations over the whole history, and its accounting; reads no server, changes nothing.",
    executor_def=dg.in_process_executor,
)


def _validate(
    context: dg.AssetCheckExecutionContext, lakehouse: LakehouseResource, stage: Stage
) -> Iterator[dg.AssetCheckResult]:
    everything = bool(context.run.tags.get(FULL_TAG))
    # Files are dropped in the same run, after this: what they bring is looked at by the stages that follow.
    sites = lakehouse.all_sites if everything else lakehouse.sites
    result = validate_stage(stage, lakehouse.settings, lakehouse.lake, sites, everything=everything)
    known = lakehouse.recorder.redactor
    keep_result(lakehouse.settings, result, context.run.run_id, known)
    report = write_report(lakehouse.settings, context.run.run_id)
    metadata: dict[str, Any] = {
        "report": dg.MetadataValue.url(report.as_uri()),
        "report_path": dg.MetadataValue.path(report),
    }
    if stage == "enriched":
        context.op_execution_context.log_event(
            dg.AssetMaterialization(validate_glucose_enriched.key, metadata={**_record(result, known), **metadata})
        )
    for outcome in result.outcomes:
        yield _check_result(stage_suite(stage).guards, outcome, known, metadata)


def _record(result: StageResult, known: Redactor) -> dict[str, Any]:
    outcomes = [shown(outcome, known) for outcome in result.outcomes]
    failed = [outcome for outcome in outcomes if not outcome.is_met]
    return {
        "success_rate_pct": round(result.success_pct, 2),
        "evaluated_expectations": len(outcomes),
        "failed_expectations": len(failed),
        "failed_critical": sum(outcome.is_blocking for outcome in outcomes),
        "rows": result.rows,
        "whole_history": result.is_full,
        "seconds": round(result.seconds, 3),
        "suite": result.suite,
        "unexpected_samples": dg.MetadataValue.json({outcome.name: outcome.samples for outcome in failed}),
        "outcomes": dg.MetadataValue.md(_table(result.outcomes)),
    }


def _check_result(asset: str, outcome: Outcome, known: Redactor, metadata: dict[str, Any]) -> dg.AssetCheckResult:
    seen = shown(outcome, known)
    details: dict[str, Any] = {"evaluated": outcome.evaluated, **metadata}
    if outcome.failed is not None:
        details["failed"] = outcome.failed
    if outcome.observed:
        details["observed"] = seen.observed
    if seen.samples:
        details["unexpected_samples"] = dg.MetadataValue.json(seen.samples)
    if outcome.failing_sites:
        details["sites"] = list(outcome.failing_sites)
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=outcome.expectation.name,
        passed=outcome.is_met,
        severity=dg.AssetCheckSeverity.ERROR if seen.severity == "critical" else dg.AssetCheckSeverity.WARN,
        metadata=details,
        description=_sentence(outcome.expectation, seen.failed, outcome),
    )


def _sentence(expectation: Expectation, failed: int | None, outcome: Outcome) -> str:
    if outcome.is_met:
        return f"Met by {outcome.evaluated:,} rows."
    count = "" if failed is None else f"{failed:,} of {outcome.evaluated:,} rows do not hold. "
    observed = f"Observed: {outcome.observed}. " if outcome.observed else ""
    return f"{count}{observed}{expectation.why}"


def _table(outcomes: tuple[Outcome, ...]) -> str:
    lines = ["| expectation | met | severity | evaluated | failed |", "|---|---|---|---:|---:|"]
    lines += [
        f"| {o.expectation.name} | {'yes' if o.is_met else 'NO'} | {o.severity} | {o.evaluated:,} "
        f"| {o.observed if o.failed is None else f'{o.failed:,}'} |"
        for o in outcomes
    ]
    return "\n".join(lines)
