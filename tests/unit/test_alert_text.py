"""The line that an alert is."""

from nightscout_lakehouse.lib.alerts.run_failure import check_failure, failure_message


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


def test_a_failed_check_names_site_row_and_report_in_one_line() -> None:
    line = check_failure(
        check="values_are_in_mg_dl",
        asset="raw_nightscout_entries",
        sites=["anna"],
        what="3 of 3 rows do not hold.\nValues are mmol/L.",
        sample={"glucose": 7.8, "site": "anna", "device": None},
        report="/x/report.html",
    )
    assert line == (
        "raw_nightscout_entries: the check values_are_in_mg_dl failed (site anna). 3 of 3 rows do not hold. "
        "Values are mmol/L. First: glucose 7.8, site anna. Report: /x/report.html"
    )
    assert failure_message(job="j", run_id="r", steps=[], reason="x", checks=[line]) == f"Run r of j failed. {line}"


def test_of_many_sites_five_are_named_and_the_report_is_never_cut_off() -> None:
    line = check_failure(
        check="c", asset="a", sites=list("abcdefgh"), what="x" * 999, sample={"text": "y\n" * 999}, report="/x.html"
    )
    assert "(site a, b, c, d, e and 3 more)" in line
    assert line.endswith(". Report: /x.html")
    assert "\n" not in line
    assert len(line) < 600
    assert check_failure(check="c", asset="a", sites=[], what="w", sample=None, report="") == "a: the check c failed. w"
