"""The text of alerts."""

from collections.abc import Sequence

_LONGEST_REASON = 300


def failure_message(*, job: str, run_id: str, steps: Sequence[str], reason: str) -> str:
    """One line that says which run failed, at which step, and why.

    Args:
        job: Name of the job.
        run_id: Id of the run.
        steps: Each failed step with its error; empty if the run failed outside a step.
        reason: Why the run failed, where no step did.
    """
    causes = [_first_line(step) for step in steps] or [_first_line(reason) or "no reason given"]
    return f"Run {run_id[:8]} of {job} failed. " + " | ".join(causes)


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:_LONGEST_REASON] if lines else ""
