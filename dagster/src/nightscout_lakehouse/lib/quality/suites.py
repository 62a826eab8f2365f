"""Suites of expectations: JSON files as Great Expectations reads them, edited without touching Python.

A suite is read twice: here, strictly and without importing Great Expectations (which takes seconds), whenever Dagster
loads the definitions; and by Great Expectations itself when it validates.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nightscout_lakehouse.lib.errors import ConfigurationError
from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT

SUITES_DIR = REPOSITORY_ROOT / "great_expectations" / "expectations"

Severity = Literal["critical", "warning", "info"]
Scope = Literal["touched", "last_14_days"]


class SuiteError(ConfigurationError):
    """A suite file is malformed; the message names the file and the key."""


@dataclass(frozen=True)
class Expectation:
    """One expectation of a suite.

    Attributes:
        name: Unique in its suite; the name of the asset check.
        type: Great Expectations' name of it, such as `expect_column_values_to_not_be_null`.
        kwargs: Its arguments.
        severity: `critical` stops what is downstream and fails the run; the others only show.
        why: Why it is there, one sentence.
        source: Where that comes from: a paper, a page of the documentation, a decision.
        scope: The rows it looks at: those of the touched days, or of the touched sites' last 14 days.
        is_by_site: Whether it has to hold for each site by itself.
        blocks_from_rows: From how many rows on a critical one stops the run; fewer prove too little.
    """

    name: str
    type: str
    kwargs: dict[str, Any] = field(hash=False)
    severity: Severity
    why: str
    source: str
    scope: Scope
    is_by_site: bool
    blocks_from_rows: int

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it looks at."""
        named = [self.kwargs[key] for key in ("column", "column_A", "column_B") if key in self.kwargs]
        return tuple(dict.fromkeys([*named, *self.kwargs.get("column_list", [])]))


@dataclass(frozen=True)
class Suite:
    """A suite as its file says.

    Attributes:
        name: Its name in Great Expectations.
        path: Its file.
        frame: Which rows it is about; see `frames`.
        guards: The asset that its checks belong to.
        expectations: In the order of the file.
    """

    name: str
    path: Path
    frame: str
    guards: str
    expectations: tuple[Expectation, ...]


class _Meta(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{2,80}$")
    why: str = Field(min_length=10)
    source: str = Field(min_length=3)
    scope: Scope = "touched"
    each_site: bool = False
    blocks_from_rows: int = Field(1, ge=1)


class _Expectation(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: str = Field(pattern=r"^expect_[a-z0-9_]+$")
    kwargs: dict[str, Any]
    severity: Severity
    meta: _Meta


class _SuiteMeta(BaseModel):
    model_config = ConfigDict(extra="forbid")

    frame: str
    guards: str
    notes: str = ""


class _SuiteFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    expectations: list[_Expectation] = Field(min_length=1)
    meta: _SuiteMeta


def load_suite(path: Path) -> Suite:
    """Read a suite's file.

    Raises:
        SuiteError: The file is missing, no JSON, or a key of it is missing, unknown or wrong.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SuiteError(f"The suite {path} cannot be read ({error.strerror}).", "Put it back from git.") from None
    except ValueError as error:
        raise SuiteError(f"The suite {path} is not valid JSON: {error}.") from None
    try:
        parsed = _SuiteFile.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        raise SuiteError(
            f"The suite {path}, key {_key(problem['loc'])}: {problem['msg']}.", "See docs/guide for what a suite takes."
        ) from None
    names = [item.meta.name for item in parsed.expectations]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise SuiteError(f"The suite {path}, key expectations[{number}].meta.name: {name} is there twice.")
    return Suite(
        name=parsed.name,
        path=path,
        frame=parsed.meta.frame,
        guards=parsed.meta.guards,
        expectations=tuple(
            Expectation(
                name=item.meta.name,
                type=item.type,
                kwargs=item.kwargs,
                severity=item.severity,
                why=item.meta.why,
                source=item.meta.source,
                scope=item.meta.scope,
                is_by_site=item.meta.each_site,
                blocks_from_rows=item.meta.blocks_from_rows,
            )
            for item in parsed.expectations
        ),
    )


def _key(location: Sequence[str | int]) -> str:
    """A place in a JSON document as it is written: `expectations[2].kwargs`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")
