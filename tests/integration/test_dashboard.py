"""Superset as a user has it: what comes back from the browser into files, and who gets in."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from superset_server import ADMIN_PASSWORD, VIEWER, SupersetServer, add_viewer, charts_of

from nightscout_lakehouse.lib.dashboard.environment import BUNDLE_DIR
from nightscout_lakehouse.lib.embedded_postgres import OWNER, SUPERUSER, embedded_postgres, password_file, read_password
from nightscout_lakehouse.lib.errors import ServingDatabaseError
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.serving import READER

pytestmark = [pytest.mark.e2e, pytest.mark.postgres]

PAGES = [
    *("/superset/welcome/", "/superset/dashboard/glucose-monitoring/", "/dashboard/list/", "/chart/list/", "/explore/"),
    *("/sqllab/", "/users/", "/roles/", "/databaseview/list/", "/tablemodelview/list/", "/actionlog/list"),
]
API = [
    *("/api/v1/dashboard/", "/api/v1/dashboard/glucose-monitoring", "/api/v1/chart/", "/api/v1/dataset/"),
    *("/api/v1/database/", "/api/v1/me/", "/api/v1/security/csrf_token/", "/api/v1/log/", "/api/v1/assets/export/"),
]


@pytest.fixture(scope="module")
def admin(superset: SupersetServer) -> Iterator[httpx.Client]:
    with contextlib.closing(superset.client()) as client:
        yield client


@pytest.fixture(scope="module")
def viewer(superset: SupersetServer, admin: httpx.Client) -> Iterator[httpx.Client]:
    add_viewer(admin)
    with contextlib.closing(superset.client(*VIEWER)) as client:
        yield client


@pytest.fixture(scope="module")
def owner(superset: SupersetServer) -> Iterator[PostgresConnection]:
    with embedded_postgres(superset.home / "postgres") as connection:
        yield connection


# Files and back


def test_what_was_imported_is_exported_as_it_was(superset: SupersetServer, owner: PostgresConnection) -> None:
    """The bring-up keeps what Superset exports right after the import."""
    kept = "select content -> 'exported', content -> 'imported' from lakehouse.bring_up where step = 'assets'"
    assert query(superset_login(superset, owner), kept) == [(files(BUNDLE_DIR), files(BUNDLE_DIR))]


def test_an_edit_comes_back_as_a_diff_of_one_line_and_an_import_undoes_it(
    superset: SupersetServer, admin: httpx.Client, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(BUNDLE_DIR, out)
    file = min((BUNDLE_DIR / "charts").glob("*.yaml")).relative_to(BUNDLE_DIR)
    title = yaml.safe_load((BUNDLE_DIR / file).read_text())["slice_name"]
    chart = charts_by_title(admin)[title]
    assert admin.put(f"/api/v1/chart/{chart}", json={"slice_name": "A better name"}).status_code == 200
    done = superset.lakehouse("dashboard", "export", "--folder", str(out))
    assert done.returncode == 0, done.stderr
    assert differences(files(BUNDLE_DIR), files(out)) == [f"-slice_name: {title}", "+slice_name: A better name"]
    assert not [secret for secret in secrets_of(superset) if secret in json.dumps(files(out))]

    # From other files: a chart more, and one thing in the browser that no file speaks of.
    assert admin.put(f"/api/v1/chart/{chart}", json={"certified_by": "Not in the files"}).status_code == 200
    uuid = "00000000-0000-5000-8000-000000000001"
    text = (out / file).read_text()
    more = yaml.safe_load(text) | {"uuid": uuid, "slice_name": "One more"}
    (out / "charts" / "one_more.yaml").write_text(yaml.safe_dump(more))
    done = superset.lakehouse("dashboard", "import", "--folder", str(out))
    assert done.returncode == 0, done.stderr
    (kept,) = (superset.home / "superset" / "replaced").iterdir()
    assert str(kept) in done.stdout
    assert differences({"": text}, {"": (kept / file).read_text()}) == ["+certified_by: Not in the files"]
    titles = charts_by_title(admin)
    assert {"One more", "A better name"} <= titles.keys()
    assert admin.get(f"/api/v1/chart/{chart}").json()["result"]["certified_by"] is None

    # Back to the repository's: what came from files and is in them no longer is gone.
    done = superset.lakehouse("dashboard", "import")
    assert done.returncode == 0, done.stderr
    assert charts_by_title(admin) == {
        (title if number == chart else name): number for name, number in titles.items() if name != "One more"
    }


def charts_by_title(client: httpx.Client) -> dict[str, int]:
    found = client.get("/api/v1/chart/", params={"q": "(page_size:100)"}).json()["result"]
    return {each["slice_name"]: each["id"] for each in found}


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*.yaml"))}


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    assert before.keys() == after.keys()
    lines = difflib.unified_diff("".join(before.values()).splitlines(), "".join(after.values()).splitlines(), n=0)
    return [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]


# Starting


def test_the_second_start_finds_everything_done(superset: SupersetServer, owner: PostgresConnection) -> None:
    steps = "select step, fingerprint, done_at from lakehouse.bring_up order by step"
    before = query(superset_login(superset, owner), steps)
    assert [step for step, _, _ in before] == ["admin", "assets", "database", "viewer role"]
    done = superset.lakehouse("dashboard", "setup")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert query(superset_login(superset, owner), steps) == before


def test_a_port_in_use_is_said_before_anything_is_started(superset: SupersetServer) -> None:
    done = superset.lakehouse("dashboard", "serve")
    assert done.returncode == 1
    assert f"Port {superset.environment['SUPERSET_PORT']} on 127.0.0.1 is in use" in " ".join(done.stderr.split())
    assert "SUPERSET_PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_secrets_are_in_no_log_and_on_no_command_line(superset: SupersetServer) -> None:
    secrets = secrets_of(superset)
    commands = [" ".join(each.cmdline()) for each in psutil.Process(superset.process.pid).children(recursive=True)]
    assert any("gunicorn" in command for command in commands)
    texts = [*commands, *(path.read_text() for path in (superset.home / "superset").glob("*.log"))]
    texts.append(superset.output.read_text())
    for text in texts:
        assert not [secret for secret in secrets if secret in text]
    key = superset.home / "superset" / "secret_key"
    assert key.stat().st_mode & 0o777 == 0o600


def secrets_of(superset: SupersetServer) -> list[str]:
    kept = [password_file(superset.home / "postgres", role) for role in (OWNER, SUPERUSER, READER, "superset")]
    return [ADMIN_PASSWORD, *(path.read_text().strip() for path in [*kept, superset.home / "superset" / "secret_key"])]


# Who gets in


@pytest.mark.parametrize("page", PAGES)
def test_no_page_without_login(superset: SupersetServer, page: str) -> None:
    answer = httpx.get(superset.url + page, trust_env=False, follow_redirects=True)
    assert [each.status_code for each in answer.history] in ([302], [302, 302])
    assert answer.url.path == "/login/"


@pytest.mark.parametrize("path", API)
def test_no_data_without_login(superset: SupersetServer, path: str) -> None:
    assert httpx.get(superset.url + path, trust_env=False).status_code in (401, 403)


@pytest.mark.parametrize("path", ["/swagger/v1", "/api/v1/_openapi", "/register/", "/registeruser/", "/guest_token/"])
def test_what_is_switched_off_is_not_there(superset: SupersetServer, path: str) -> None:
    assert httpx.get(superset.url + path, trust_env=False).status_code in (401, 404)


def test_headers_and_cookies(superset: SupersetServer) -> None:
    answer = httpx.get(f"{superset.url}/login/", headers={"Origin": "https://evil.example"}, trust_env=False)
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["img-src"] == "'self' blob: data:"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in policy["script-src"]
    assert "http" not in answer.headers["content-security-policy"]
    assert re.search(r"session=.*; HttpOnly; Path=/; SameSite=Strict", answer.headers["set-cookie"])


@pytest.mark.parametrize("way", ["form", "api"])
def test_after_five_wrong_logins_nobody_gets_in(superset: SupersetServer, way: str) -> None:
    log_in_by = {"form": by_form, "api": by_api}[way]
    with visitor(superset, "127.0.0.2") as known, visitor(superset, "127.0.0.3") as guessing:
        assert log_in_by(known, ADMIN_PASSWORD) == "in"
        assert [log_in_by(guessing, "wrong") for _ in range(5)] == ["refused"] * 5
        assert log_in_by(guessing, "wrong") == "429"
        # Not even with the right one.
        assert log_in_by(guessing, ADMIN_PASSWORD) == "429"


def visitor(superset: SupersetServer, address: str) -> httpx.Client:
    """Somebody at another address, since attempts are counted for each."""
    return httpx.Client(base_url=superset.url, transport=httpx.HTTPTransport(local_address=address), timeout=60)


def by_api(client: httpx.Client, password: str) -> str:
    answer = client.post("/api/v1/security/login", json={"username": "admin", "password": password, "provider": "db"})
    return {200: "in", 401: "refused"}.get(answer.status_code, str(answer.status_code))


def by_form(client: httpx.Client, password: str) -> str:
    token = re.search(r'id="csrf_token"\s*value="([^"]+)"', client.get("/login/").text)
    assert token is not None
    form = {"username": "admin", "password": password, "csrf_token": token[1]}
    answer = client.post("/login/", data=form, headers={"Referer": str(client.base_url)})
    if answer.status_code != 302:
        return str(answer.status_code)
    return "refused" if answer.headers["location"] == "/login/?next=/" else "in"


def test_a_short_password_is_refused(admin: httpx.Client) -> None:
    person = {"username": "short", "password": "0123456", "first_name": "S", "last_name": "S", "email": "s@localhost"}
    answer = admin.post("/api/v1/security/users/", json=person | {"active": True, "roles": [1]})
    assert answer.status_code == 400
    assert "at least 12 characters" in answer.text


def test_the_viewer_sees_and_changes_nothing(viewer: httpx.Client) -> None:
    (dashboard,) = [
        each for each in viewer.get("/api/v1/dashboard/").json()["result"] if each["slug"] == "glucose-monitoring"
    ]
    charts = viewer.get(f"/api/v1/dashboard/{dashboard['id']}/charts").json()["result"]
    assert len(charts) == len(charts_of("dashboards/glucose_monitoring.yaml"))
    chart = charts[0]["id"]
    change: dict[str, Any] = {"slice_name": "mine", "dashboard_title": "mine"}
    refused = {
        "change a chart": viewer.put(f"/api/v1/chart/{chart}", json={"slice_name": "mine"}),
        "change a dashboard": viewer.put(f"/api/v1/dashboard/{dashboard['id']}", json={"dashboard_title": "mine"}),
        "delete a dashboard": viewer.delete(f"/api/v1/dashboard/{dashboard['id']}"),
        "make a dashboard": viewer.post("/api/v1/dashboard/", json=change),
        "list databases": viewer.get("/api/v1/database/"),
        "list datasets": viewer.get("/api/v1/dataset/"),
        "run SQL": viewer.post("/api/v1/sqllab/execute/", json={"database_id": 1, "sql": "select 1"}),
        "list users": viewer.get("/api/v1/security/users/"),
        "read the log": viewer.get("/api/v1/log/"),
        "export everything": viewer.get("/api/v1/assets/export/"),
        "export a dashboard": viewer.get(f"/api/v1/dashboard/export/?q=!({dashboard['id']})"),
    }
    assert {what: answer.status_code for what, answer in refused.items() if answer.status_code not in (403, 404)} == {}


# What the database lets it do


def test_superset_and_the_marts_do_not_see_each_other(superset: SupersetServer, owner: PostgresConnection) -> None:
    reader = login(superset, owner, READER, "lakehouse")
    assert query(reader, "select count(*) > 0 from marts.mart_glucose_overview") == [(True,)]
    for other in ("superset", "postgres"):
        with pytest.raises(ServingDatabaseError):
            replace(reader, database=other).connect()
    for statement in (
        "select * from curated.dim_site",
        "select * from ops.publish_state",
    ):
        with pytest.raises(Exception, match="permission denied"):
            query(reader, statement)
    ours = superset_login(superset, owner)
    assert query(ours, "select count(*) from dashboards")[0][0] >= 1
    for other in ("lakehouse", "postgres"):
        with pytest.raises(ServingDatabaseError):
            replace(ours, database=other).connect()
    # The password of the marts is in no table of Superset's.
    assert query(ours, "select sqlalchemy_uri, password, encrypted_extra from dbs") == [
        ("postgresql+psycopg2://bi_reader@marts/lakehouse", None, None)
    ]


def login(superset: SupersetServer, owner: PostgresConnection, role: str, database: str) -> PostgresConnection:
    password = read_password(password_file(superset.home / "postgres", role))
    assert password is not None
    return replace(owner, user=role, password=password, database=database)


def superset_login(superset: SupersetServer, owner: PostgresConnection) -> PostgresConnection:
    return login(superset, owner, "superset", "superset")


def query(connection: PostgresConnection, statement: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(connection.connect()) as opened, opened.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()
