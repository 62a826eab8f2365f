"""Validates frames with Great Expectations, piece by piece, so that memory is bounded however long the history is.

A frame is cut into pieces of whole sites and months. What Great Expectations counts in each piece is added up, and an
expectation with `mostly` is judged by the sums. One that looks at a whole column (such as its mean) has to hold in
every piece, or in every site where the suite says so.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nightscout_lakehouse.lib.quality.suites import Expectation, Severity, Suite, SuiteError

if TYPE_CHECKING:
    import pandas as pd

MOST_SAMPLES = 20


@dataclass(frozen=True)
class Outcome:
    """What came of one expectation.

    Attributes:
        expectation: Which.
        is_met: Whether it holds.
        evaluated: Rows looked at.
        judged_together: Rows of the largest group that does not hold: of one site where each has to hold by itself.
        failed: Rows that do not hold; None where it is about the column as a whole.
        observed: What was observed of the column as a whole, as text.
        failing_sites: Sites that do not hold, where that is known.
        samples: Rows that do not hold, at most 20: the key's columns and the value.
    """

    expectation: Expectation
    is_met: bool = True
    evaluated: int = 0
    judged_together: int = 0
    failed: int | None = None
    observed: str = ""
    failing_sites: tuple[str, ...] = ()
    samples: tuple[Mapping[str, Any], ...] = ()

    @property
    def is_blocking(self) -> bool:
        """Whether it stops what is downstream."""
        enough = self.judged_together >= self.expectation.blocks_from_rows
        return not self.is_met and self.expectation.severity == "critical" and enough

    @property
    def severity(self) -> Severity:
        """The severity that its failing has: a critical one with too few rows is a warning."""
        if self.expectation.severity == "critical" and not self.is_met and not self.is_blocking:
            return "warning"
        return self.expectation.severity


@dataclass(frozen=True)
class Piece:
    """Part of a frame: rows that are validated at once.

    Attributes:
        site: The one site of its rows, or None if there are several.
        rows: Its rows; the columns that the suite and the samples need.
    """

    site: str | None
    rows: "pd.DataFrame"


class Validator:
    """Runs the expectations of one suite over the pieces of its frame.

    Args:
        suite: Which expectations.
        key: Columns that name a row in the samples.
    """

    def __init__(self, suite: Suite, key: Sequence[str]) -> None:
        self._suite = suite
        self._key = list(key)
        self._batches = _batch_definition()
        self._outcomes = {item.name: Outcome(item) for item in suite.expectations}

    def validate(self, expectations: Sequence[Expectation], pieces: Iterable[Piece]) -> None:
        """Validate pieces against some of the suite's expectations; what comes of them is added up."""
        built = _built(self._suite, expectations)
        for piece in pieces:
            if piece.rows.empty:
                continue
            missing = {c for item in expectations for c in item.columns} - set(piece.rows.columns)
            if missing:
                raise SuiteError(
                    f"The suite {self._suite.path} names the column {', '.join(sorted(missing))}, which the frame "
                    f"{self._suite.frame} does not have.",
                )
            batch = self._batches.get_batch(batch_parameters={"dataframe": piece.rows})
            result = batch.validate(
                built,
                result_format={
                    "result_format": "SUMMARY",
                    "unexpected_index_column_names": self._key,
                    "partial_unexpected_count": MOST_SAMPLES,
                },
            )
            for item in result.results:
                name = item.expectation_config.meta["name"]
                self._outcomes[name] = self._added(self._outcomes[name], item, piece)

    @property
    def outcomes(self) -> list[Outcome]:
        """What came of each expectation, in the order of the suite."""
        return [self._outcomes[item.name] for item in self._suite.expectations]

    def _added(self, before: Outcome, item: Any, piece: Piece) -> Outcome:
        expectation = before.expectation
        error = _exception(item.exception_info)
        if error:
            raise SuiteError(f"The suite {self._suite.path}, expectation {expectation.name}: {error}")
        result = item.result
        rows = int(result.get("element_count", len(piece.rows)))
        if "unexpected_count" not in result:
            failing = set(before.failing_sites)
            if not item.success and piece.site is not None:
                failing.add(piece.site)
            observed = _text(result.get("observed_value"))
            # Of several pieces the one that fails is the one to show.
            shown = observed if not before.observed or not item.success else before.observed
            return replace(
                before,
                is_met=before.is_met and bool(item.success),
                evaluated=before.evaluated + rows,
                judged_together=max(before.judged_together, 0 if item.success else rows),
                observed=shown,
                failing_sites=tuple(sorted(failing)),
            )
        counts_null = expectation.type in ("expect_column_values_to_not_be_null", "expect_column_values_to_be_null")
        evaluated_here = rows if counts_null else rows - int(result.get("missing_count") or 0)
        evaluated = before.evaluated + evaluated_here
        failed = (before.failed or 0) + int(result["unexpected_count"])
        samples = [
            {str(name): _plain(value) for name, value in row.items()}
            for row in result.get("partial_unexpected_index_list") or []
        ]
        failing = {*before.failing_sites, *(str(row["site"]) for row in samples if "site" in row)}
        mostly = float(expectation.kwargs.get("mostly", 1.0))
        is_met = failed <= (1 - mostly) * evaluated + 1e-9
        if expectation.is_by_site:
            is_met = before.is_met and bool(item.success)
        return replace(
            before,
            is_met=is_met,
            evaluated=evaluated,
            judged_together=_judged_together(before, evaluated, evaluated_here, bool(item.success)),
            failed=failed,
            failing_sites=tuple(sorted(failing)),
            samples=(*before.samples, *samples)[:MOST_SAMPLES],
        )


def _judged_together(before: Outcome, evaluated: int, evaluated_here: int, is_met_here: bool) -> int:
    if not before.expectation.is_by_site:
        return evaluated
    # A handful of odd documents of one site must not stop the others because those have many.
    return before.judged_together if is_met_here else max(before.judged_together, evaluated_here)


def by_site(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same rows, each site by itself."""
    for piece in pieces:
        for site, rows in piece.rows.groupby("site", sort=True):
            yield Piece(str(site), rows)


def check_suite(suite: Suite) -> None:
    """Have Great Expectations read every expectation of a suite.

    Raises:
        SuiteError: It does not know one, or an argument of it.
    """
    _built(suite, suite.expectations)


def _built(suite: Suite, expectations: Sequence[Expectation]) -> Any:
    _no_telemetry()
    from great_expectations.core import ExpectationSuite
    from great_expectations.exceptions.exceptions import ExpectationNotFoundError
    from great_expectations.expectations.metadata_types import FailureSeverity
    from great_expectations.expectations.registry import get_expectation_impl

    built = []
    for item in expectations:
        place = f"The suite {suite.path}, expectation {item.name}"
        try:
            kind = get_expectation_impl(item.type)
        except ExpectationNotFoundError:
            raise SuiteError(f"{place}, key type: Great Expectations has no {item.type}.") from None
        try:
            severity = FailureSeverity(item.severity)
            built.append(kind(**item.kwargs, severity=severity, meta={"name": item.name}))
        except ValueError as error:
            details: list[Any] = getattr(error, "errors", list)()
            what = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in details) or str(error)
            raise SuiteError(f"{place}, key kwargs: {what}.") from None
    return ExpectationSuite(name=suite.name, expectations=built)


def _batch_definition() -> Any:
    _no_telemetry()
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return (
        context.data_sources.add_pandas("lakehouse")
        .add_dataframe_asset("frame")
        .add_batch_definition_whole_dataframe("piece")
    )


def _no_telemetry() -> None:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"


def _exception(info: Any) -> str:
    """What went wrong inside an expectation; its info has one of two shapes."""
    if not isinstance(info, Mapping):
        return ""
    items = [info] if "raised_exception" in info else list(info.values())
    messages = [str(one.get("exception_message")) for one in items if one.get("raised_exception")]
    return messages[0].splitlines()[0] if messages else ""


def _plain(value: Any) -> Any:
    """A value as JSON takes it."""
    if hasattr(value, "item"):
        value = value.item()
    return value if isinstance(value, int | float | str | bool) or value is None else str(value)


def _text(value: Any) -> str:
    plain = _plain(value)
    return f"{plain:.6g}" if isinstance(plain, float) else "" if plain is None else str(plain)
