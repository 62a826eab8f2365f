"""The log: lines that a program reads, with what they are about, and no secret in any part of them."""

import hashlib
import json
import logging
import re
import shutil
import stat
import threading
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from nightscout_lakehouse.lib import run_log
from nightscout_lakehouse.lib.redaction import Redactor, redactor
from nightscout_lakehouse.lib.run_log import RedactingFilter, log_context, log_event, log_file, log_path, rotate_log
from nightscout_lakehouse.lib.settings import Settings, load_settings
from nightscout_lakehouse.lib.sites import Site

TOKEN = "reader-0123456789abcdef"
PASSWORD = "p@ss word/42"

logger = logging.getLogger("nightscout_lakehouse.test")


@pytest.fixture
def lines(settings: Settings) -> Iterator[Any]:
    with log_file(settings, lambda: Redactor.of([TOKEN, PASSWORD]), lambda: "raw_nightscout_entries"):
        yield lambda: [json.loads(line) for line in log_path(settings).read_text().splitlines()]


def test_a_line_says_when_what_where_and_of_whom(lines: Any) -> None:
    with log_context(run_id="run-1", site="anna"):
        logger.warning("%d documents are odd", 3)
        log_event("site_read", site="ben", fetched=12, error="HTTP 401")
    logger.info("after")
    first, second, third = lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", first.pop("time"))
    assert first == {
        "level": "warning",
        "logger": "nightscout_lakehouse.test",
        "message": "3 documents are odd",
        "run_id": "run-1",
        "step": "raw_nightscout_entries",
        "site": "anna",
    }
    assert (second["event"], second["run_id"], second["site"], second["fetched"]) == ("site_read", "run-1", "ben", 12)
    assert second["error"] == "HTTP 401"
    assert "site" not in third


def test_a_thread_logs_of_its_own_site(lines: Any) -> None:
    def read(site: str) -> None:
        with log_context(site=site):
            logger.info("reading")

    with log_context(run_id="run-1"):
        threads = [threading.Thread(target=copy_context().run, args=(read, site)) for site in ("anna", "ben")]
        for thread in threads:
            thread.start()
            thread.join()
    assert [(line["run_id"], line["site"]) for line in lines()] == [("run-1", "anna"), ("run-1", "ben")]


def test_no_secret_in_text_values_or_traceback(lines: Any, settings: Settings) -> None:
    logger.info("token %s", TOKEN)
    logger.info({"an object": TOKEN})
    log_event("odd", nested=[{"url": f"https://x.example/?token={TOKEN}"}, TOKEN], **{TOKEN: 1})
    try:
        raise ValueError(f"password {PASSWORD}") from RuntimeError(TOKEN)
    except ValueError:
        logger.exception("failed with %r", PASSWORD)
    text = log_path(settings).read_text()
    assert TOKEN not in text
    assert PASSWORD not in text
    assert "p%40ss" not in text
    assert "RuntimeError: ***" in lines()[-1]["traceback"]
    assert "ValueError: password ***" in lines()[-1]["traceback"]


def test_who_logs_after_us_gets_the_record_clean(settings: Settings) -> None:
    """Dagster's handler stands beside ours, and shows what it is given in the UI."""
    seen = list[logging.LogRecord]()

    class Other(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)

    package, other = logging.getLogger("nightscout_lakehouse"), Other()
    package.addHandler(other)
    try:
        with log_file(settings, lambda: Redactor.of([TOKEN])):
            logger.error("refused: %s", TOKEN)
    finally:
        package.removeHandler(other)
    assert [record.getMessage() for record in seen] == ["refused: ***"]


def test_the_secrets_of_a_lakehouse_are_all_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSCOUT_URL", "https://me:letmein99@ns.example?token=url-token-77")
    monkeypatch.setenv("NIGHTSCOUT_API_SECRET", "my api secret!")
    monkeypatch.setenv("LAKE_S3_SECRET_ACCESS_KEY", "s3-secret-key")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:db%20pass@h/d")
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql://me:dagster-pass@h/d")
    settings = load_settings()
    settings.postgres_dir.mkdir(parents=True)
    (settings.postgres_dir / "bi_reader_password").write_text("generated-reader-password")
    clean = redactor(settings, [Site("anna", "https://x", token=SecretStr("annas-token"))]).clean
    for secret in (
        *("letmein99", "url-token-77", "my api secret!", "my%20api%20secret%21", "s3-secret-key", "db pass"),
        *("dagster-pass", "db%20pass", "generated-reader-password", "annas-token"),
        # What Nightscout is sent in place of the API secret.
        hashlib.sha1(b"my api secret!").hexdigest(),
    ):
        assert secret not in clean(f"before {secret} after"), secret
    # An address is none.
    assert clean("https://ns.example answers") == "https://ns.example answers"


def test_no_secret_setting_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {name: field for name, field in Settings.model_fields.items() if field.annotation is SecretStr}
    assert len(fields) >= 8
    for name, field in fields.items():
        value = (
            f"https://host-of-{name}.example?token=secret-of-{name}" if name.endswith("_url") else f"secret-of-{name}"
        )
        monkeypatch.setenv(str(field.validation_alias), value)
    clean = redactor(load_settings()).clean
    for name in fields:
        assert clean(f"it is secret-of-{name} indeed") == "it is *** indeed", name


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("postgresql://u:hunter2@h:5432/d", "postgresql://***@h:5432/d"),
        ("GET /api/v1/entries.json?count=1&token=abc-def HTTP", "GET /api/v1/entries.json?count=1&token=*** HTTP"),
        ("api-secret: 0a1b2c", "api-secret: ***"),
        ('{"Authorization": "Bearer ey.J"}', '{"Authorization": "***"}'),
        ("https://h/?X-Amz-Signature=0f0f&y=1", "https://h/?X-Amz-Signature=***&y=1"),
        ("key of the site, token missing", "key of the site, token missing"),
    ],
)
def test_what_looks_like_a_secret_is_one(text: str, cleaned: str) -> None:
    assert Redactor().clean(text) == cleaned


def test_a_short_secret_does_not_black_out_every_text() -> None:
    assert Redactor.of(["a", ""]).clean("a cat") == "a cat"


def test_a_large_log_is_put_aside_and_the_writer_goes_on(
    settings: Settings, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_log, "ROTATE_BYTES", 50)
    for number in range(7):
        logger.info("line %d of some length that fills the file", number)
        rotate_log(settings)
    logger.info("last")
    assert [line["message"] for line in lines()] == ["last"]
    names = sorted(path.name for path in settings.log_dir.iterdir())
    assert names == ["lakehouse.jsonl", *(f"lakehouse.jsonl.{number}" for number in range(1, 6))]
    newest = json.loads((settings.log_dir / "lakehouse.jsonl.1").read_text())
    assert newest["message"].startswith("line 6")
    assert stat.S_IMODE(log_path(settings).stat().st_mode) == 0o600


def test_the_level_is_that_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKEHOUSE_LOG_LEVEL", "warning")
    settings = load_settings()
    with log_file(settings, Redactor):
        logger.info("no")
        logger.warning("yes")
    assert [json.loads(line)["message"] for line in log_path(settings).read_text().splitlines()] == ["yes"]


def test_the_log_of_a_command_comes_back_after_a_run(settings: Settings, tmp_path: Path) -> None:
    package = logging.getLogger("nightscout_lakehouse")
    before = list(package.handlers), package.propagate, package.level
    terminal = logging.NullHandler()
    try:
        run_log.log_of_command(settings, Redactor.of([TOKEN]), terminal)
        of_command = list(package.handlers)
        assert any(isinstance(each, RedactingFilter) for each in terminal.filters)
        with log_file(settings, Redactor):
            # One file, one writer: no line is there twice.
            logger.info("once")
        assert set(package.handlers) == set(of_command)
        logger.info("and again")
    finally:
        package.handlers, package.propagate = before[0], before[1]
        package.setLevel(before[2])
        logging.getLogger(run_log.EVENT_LOGGER).handlers = []
    text = log_path(settings).read_text()
    assert text.count("once") == text.count("and again") == 1


def test_a_file_that_cannot_be_written_or_is_gone_fails_nobody(settings: Settings) -> None:
    with log_file(settings, Redactor):
        logger.info("first")
        shutil.rmtree(settings.home)
        logger.info("nowhere to go")
    settings.log_dir.parent.mkdir(parents=True)
    settings.log_dir.write_text("no folder")
    with log_file(settings, Redactor):
        logger.info("nowhere to go either")
    assert settings.log_dir.read_text() == "no folder"
