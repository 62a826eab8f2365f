"""Alerts on runs: a step or a critical check that failed, and a job that succeeds again."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from nightscout_lakehouse.lib.alerts.delivery import Send, deliver
from nightscout_lakehouse.lib.alerts.engine import Condition, Kind, Signal, advance, is_muted
from nightscout_lakehouse.lib.alerts.policy import pipeline_policy
from nightscout_lakehouse.lib.alerts.rules import Rule
from nightscout_lakehouse.lib.alerts.run_failure import failure_message
from nightscout_lakehouse.lib.alerts.store import PIPELINE, AlertStore, Draft, Failing
from nightscout_lakehouse.lib.alerts.targets import Target, load_targets, send, targets_of
from nightscout_lakehouse.lib.alerts.wording import pipeline_text
from nightscout_lakehouse.lib.redaction import redactor_with_sites
from nightscout_lakehouse.lib.settings import Settings


def run_failed(
    settings: Settings,
    *,
    job: str,
    run_id: str,
    steps: Sequence[str],
    checks: Sequence[str],
    reason: str = "",
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    deliver_by: Send = send,
) -> None:
    """Tell of a run that failed; once, however often it is reported, and not again for the same within its cool-down.

    Args:
        settings: Whose targets.
        job: Name of the job.
        run_id: Id of the run.
        steps: Each failed step with its error: `step: error`.
        checks: A line for each critical check that failed, as `check_failure` writes it.
        reason: Why the run failed, where neither a step nor a check did.
        now: The clock.
        deliver_by: What sends a message.
    """
    targets = load_targets(settings)
    if not targets:
        return
    rule = Rule.DATA_QUALITY if checks else Rule.PIPELINE_FAILURE
    subject = ", ".join([job, *sorted({_cause(line) for line in checks or steps})])
    line = failure_message(job=job, run_id=run_id, steps=steps, checks=checks, reason=reason)
    detail = redactor_with_sites(settings).clean(line)
    with AlertStore(settings.alerts_dir) as store:
        with store.transaction():
            if store.is_new_run(run_id, now()):
                known = {(each.rule, each.subject): each.condition for each in store.failing(job=job)}
                condition = known.get((rule, subject), Condition())
                failing = Failing(rule, subject, job, detail, settings.run_url + run_id, condition)
                drafts = advance_run(settings, store, targets, failing, Signal.HOLDS, now(), may_remind=True)
                store.put(drafts, now())
        deliver(store, targets, now=now, deliver_by=deliver_by)


def run_succeeded(
    settings: Settings,
    *,
    job: str,
    run_id: str,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    deliver_by: Send = send,
) -> None:
    """Tell that a job succeeds again, where someone was told that it failed."""
    targets = load_targets(settings)
    if not targets:
        return
    with AlertStore(settings.alerts_dir) as store:
        with store.transaction():
            for failing in store.failing(job=job):
                if failing.condition.is_active:
                    healed = replace(failing, link=settings.run_url + run_id)
                    drafts = advance_run(settings, store, targets, healed, Signal.OVER, now(), may_remind=False)
                    store.put(drafts, now())
        deliver(store, targets, now=now, deliver_by=deliver_by)


def runs_to_tell(settings: Settings, store: AlertStore, targets: Sequence[Target], now: datetime) -> list[Draft]:
    """What of failed runs is due by time alone: what quiet hours or a snooze kept back, and escalation."""
    drafts = list[Draft]()
    for failing in store.failing():
        if failing.condition.is_active:
            drafts += advance_run(settings, store, targets, failing, Signal.HOLDS, now, may_remind=False)
    return drafts


def advance_run(
    settings: Settings,
    store: AlertStore,
    targets: Sequence[Target],
    failing: Failing,
    signal: Signal,
    now: datetime,
    *,
    may_remind: bool,
) -> list[Draft]:
    """One step for a way in which runs fail, within the caller's transaction."""
    policy = pipeline_policy(settings)
    was_escalated = failing.condition.escalated_at is not None
    condition, kinds = advance(
        failing.rule,
        failing.condition,
        signal,
        now,
        escalate_minutes=policy.escalate_minutes,
        is_muted=is_muted(failing.rule, store.site_state(PIPELINE), policy, now),
        may_remind=may_remind,
    )
    store.keep_failing(replace(failing, condition=condition))
    return [
        Draft(
            PIPELINE,
            failing.rule,
            kind,
            pipeline_text(failing.rule, kind, failing.job, failing.detail, failing.link),
            targets_of(kind, targets, is_for_escalation_too=was_escalated and kind is Kind.RECOVERED),
            failing.subject,
        )
        for kind in kinds
    ]


def _cause(line: str) -> str:
    """A step, or an asset with its check: what comes before what went wrong with it."""
    return line.split(" failed", 1)[0] if ": the check " in line else line.split(":", 1)[0]
