"""Promises of the repository as a whole."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS
from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT, Settings


@pytest.mark.parametrize("folder", ["dagster", "dbt", "great_expectations", "superset"])
def test_no_folder_shadows_the_installed_package(folder: str) -> None:
    assert not (REPOSITORY_ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("package", ["dagster", "duckdb", "sqlfluff"])
def test_the_installed_packages_are_found(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert "site-packages" in spec.origin


def test_lib_knows_nothing_of_dagster() -> None:
    lib = REPOSITORY_ROOT / "dagster" / "src" / "nightscout_lakehouse" / "lib"
    importing = [
        path.name for path in lib.glob("*.py") if re.search(r"^\s*(import|from) dagster", path.read_text(), re.M)
    ]
    assert importing == []


def test_the_environment_is_read_in_one_place() -> None:
    package = REPOSITORY_ROOT / "dagster" / "src" / "nightscout_lakehouse"
    reading = {
        path.name for path in package.rglob("*.py") if re.search(r"os\.getenv|os\.environ\.get", path.read_text())
    }
    # Two hand variables on: the search path to Postgres, and what dbt's profile names back as it was.
    assert reading <= {"settings.py", "embedded_postgres.py", "dbt_project.py"}


def test_every_setting_is_documented() -> None:
    documented = set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", (REPOSITORY_ROOT / ".env.example").read_text(), re.M))
    assert documented == {str(field.validation_alias) for field in Settings.model_fields.values()}


def test_every_column_of_the_lake_is_documented() -> None:
    page = (REPOSITORY_ROOT / "docs" / "reference" / "lake.md").read_text()
    for collection in COLLECTIONS:
        assert f"`lake.{collection.name}`" in page
        missing = [column for column in collection.view_columns if f"`{column}`" not in page]
        assert missing == [], collection.name


def test_the_example_of_sites_is_valid_toml() -> None:
    assert len(tomllib.loads((REPOSITORY_ROOT / "sites.example.toml").read_text())["sites"]) == 3


def test_links_in_the_docs_lead_somewhere() -> None:
    broken = []
    for page in [*REPOSITORY_ROOT.glob("*.md"), *(REPOSITORY_ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_ci_calls_the_commands_of_the_readme() -> None:
    script = (REPOSITORY_ROOT / ".ci" / "run").read_text()
    assert "make lint" in script
    assert "make test" in script
    assert "make test" in Path(REPOSITORY_ROOT / "README.md").read_text()
