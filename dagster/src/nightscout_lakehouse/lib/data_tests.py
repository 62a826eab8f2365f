"""How far the data tests of each model have come.

A tick tests the days that changed since a model's tests last passed (dbt/macros/checks.sql). `ops.checks` keeps up to
which change that is. It moves only when every test of the model has passed, so what failed or warned is tested again,
with what is new, at every tick until it is mended.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import duckdb


def models_that_passed(manifest: Mapping[str, Any], passed_tests: Collection[str]) -> list[str]:
    """Names of the models of which every data test passed, sorted; a model without tests is none of them.

    Args:
        manifest: dbt's `manifest.json`.
        passed_tests: dbt's ids of the tests that ran and found nothing.
    """
    tests_of: dict[str, set[str]] = {}
    for key, node in manifest["nodes"].items():
        if node["resource_type"] == "test":
            for parent in node["depends_on"]["nodes"]:
                tests_of.setdefault(parent, set()).add(key)
    models = {key: node["name"] for key, node in manifest["nodes"].items() if node["resource_type"] == "model"}
    return sorted(models[key] for key, tests in tests_of.items() if key in models and tests <= set(passed_tests))


def record_checks(warehouse: duckdb.DuckDBPyConnection, models: Sequence[str]) -> None:
    """Keep that all tests of these models passed for all changes that the models have taken in."""
    warehouse.execute(
        """
        insert into ops.checks
        select consumer, change_seq from ops.watermarks where list_contains(?, consumer)
        on conflict (model) do update set change_seq = excluded.change_seq
        """,
        [list(models)],
    )


def forget_checks(warehouse: duckdb.DuckDBPyConnection) -> None:
    """Have the next tests look at the whole history of every model."""
    warehouse.execute("delete from ops.checks")
