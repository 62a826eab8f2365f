"""The line that an alert is."""

from nightscout_lakehouse.lib.alerts import failure_message


def test_names_job_step_and_first_line_of_the_error() -> None:
    message = failure_message(
        job="nightscout_pipeline",
        run_id="0123456789abcdef",
        steps=["raw_nightscout_entries: Site anna: refused.\nTraceback …", "other: x"],
        reason="Steps failed",
    )
    assert (
        message == "Run 01234567 of nightscout_pipeline failed. raw_nightscout_entries: Site anna: refused. | other: x"
    )


def test_says_the_reason_where_no_step_failed() -> None:
    assert failure_message(job="j", run_id="r", steps=[], reason="Run was lost").endswith("failed. Run was lost")
    assert failure_message(job="j", run_id="r", steps=[], reason="").endswith("no reason given")


def test_a_long_error_is_cut() -> None:
    assert len(failure_message(job="j", run_id="r", steps=["x" * 5000], reason="")) < 400
