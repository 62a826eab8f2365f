"""The text of alerts."""

from collections.abc import Mapping, Sequence

_LONGEST_REASON = 300
_LONGEST_SAMPLE = 200
_MOST_SITES = 5


def failure_message(*, job: str, run_id: str, steps: Sequence[str], reason: str, checks: Sequence[str] = ()) -> str:
    """One line that says which run failed, at which step, and why.

    Args:
        job: Name of the job.
        run_id: Id of the run.
        steps: Each failed step with its error; empty if the run failed outside a step or by a check.
        reason: Why the run failed, where no step did.
        checks: A line for each critical check that failed, as `check_failure` writes it.
    """
    causes = [*checks, *(_first_line(step) for step in steps)] or [_first_line(reason) or "no reason given"]
    return f"Run {run_id[:8]} of {job} failed. " + " | ".join(causes)


def check_failure(
    *, check: str, asset: str, sites: Sequence[str], what: str, sample: Mapping[str, object] | None, report: str
) -> str:
    """One line that says which critical check failed, for whom, on what, and where to read on.

    Args:
        check: Name of the check.
        asset: What it guards.
        sites: Whose data; empty if that is not known.
        what: What was found.
        sample: The first row that does not hold.
        report: Path of the report; empty if there is none.
    """
    whom = ""
    if sites:
        more = f" and {len(sites) - _MOST_SITES} more" if len(sites) > _MOST_SITES else ""
        whom = f" (site {', '.join(sites[:_MOST_SITES])}{more})"
    text = f"{asset}: the check {check} failed{whom}. {' '.join(what.split())}"[:_LONGEST_REASON].rstrip()
    if sample:
        # An event that was stored has its keys sorted; the line is to be the same wherever it is written.
        row = ", ".join(f"{name} {value}" for name, value in sorted(sample.items()) if value is not None)
        text += f" First: {' '.join(row.split())[:_LONGEST_SAMPLE]}."
    return f"{text} Report: {report}" if report else text


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:_LONGEST_REASON] if lines else ""
