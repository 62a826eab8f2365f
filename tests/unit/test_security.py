"""What keeps others' hands off: TLS, hashes in the lock, private files, and an audit that does not pass for more."""

import datetime
import importlib.util
import json
import ssl
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest

from nightscout_lakehouse.lib.doctor import secrets_are_private
from nightscout_lakehouse.lib.errors import ConfigurationError, LakehouseError
from nightscout_lakehouse.lib.nightscout_client import FetchPolicy, NightscoutClient, NightscoutError
from nightscout_lakehouse.lib.nightscout_collections import ENTRIES
from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT, load_settings, site_secret
from nightscout_lakehouse.lib.sites import Site

TOKEN = "reader-0123456789abcdef"


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", REPOSITORY_ROOT / "scripts" / "audit_dependencies.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["audit"] = module
    spec.loader.exec_module(module)
    return module


class _Handler(BaseHTTPRequestHandler):
    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.seen.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def self_signed(tmp_path: Path) -> Iterator[str]:
    """A server whose certificate nobody vouches for, though its name is right."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "server.pem"
    pem.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = HTTPServer(("127.0.0.1", 0), _Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_certificate_that_nobody_vouches_for_is_refused(self_signed: str) -> None:
    from pydantic import SecretStr

    site = Site("anna", self_signed, token=SecretStr(TOKEN))
    policy = FetchPolicy(timeout_seconds=5, max_attempts=1, max_retry_wait_seconds=0.1)
    with NightscoutClient(site, policy) as client, pytest.raises(NightscoutError) as refused:
        client.documents(ENTRIES, 0, 1, 10)
    assert "the TLS certificate or handshake is not valid" in str(refused.value)
    assert TOKEN not in str(refused.value)
    # Neither the question nor the token went out.
    assert _Handler.seen == []


def test_nothing_in_the_code_turns_verification_off() -> None:
    sources = [*(REPOSITORY_ROOT / "dagster" / "src").rglob("*.py"), *(REPOSITORY_ROOT / "superset").glob("*.py")]
    assert len(sources) > 100
    words = ("verify=False", "verify = False", "CERT_NONE", "_create_unverified_context", "check_hostname = False")
    assert [str(path) for path in sources for word in words if word in path.read_text()] == []


@pytest.mark.parametrize("lock", ["uv.lock", "superset/uv.lock", "tests/references/uv.lock"])
def test_every_locked_file_has_a_hash(lock: str) -> None:
    packages = tomllib.loads((REPOSITORY_ROOT / lock).read_text())["package"]
    files = [
        (package["name"], file)
        for package in packages
        for file in [*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else [])]
    ]
    assert len(files) > 100
    assert [name for name, file in files if not file.get("hash", "").startswith("sha256:")] == []
    # From nowhere else: a package without a file would be one of a folder, a URL or a repository.
    others = [package["name"] for package in packages if set(package["source"]) & {"git", "url", "path", "directory"}]
    assert others == []


def test_secrets_come_from_a_file_that_only_its_owner_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = tmp_path / "secrets.env"
    secrets.write_text(f"NIGHTSCOUT_TOKEN={TOKEN}\nANNA_TOKEN=another\n")
    secrets.chmod(0o640)
    monkeypatch.setenv("LAKEHOUSE_SECRETS_FILE", str(secrets))
    with pytest.raises(ConfigurationError, match=r"others can read.*chmod 600") as refused:
        load_settings()
    assert TOKEN not in str(refused.value)
    secrets.chmod(0o600)
    assert load_settings().nightscout_token.get_secret_value() == TOKEN
    assert site_secret("ANNA_TOKEN").get_secret_value() == "another"
    # The environment goes before it.
    monkeypatch.setenv("NIGHTSCOUT_TOKEN", "of the environment")
    assert load_settings().nightscout_token.get_secret_value() == "of the environment"
    monkeypatch.setenv("LAKEHOUSE_SECRETS_FILE", str(tmp_path / "missing"))
    with pytest.raises(ConfigurationError, match="LAKEHOUSE_SECRETS_FILE"):
        load_settings()


def test_doctor_minds_an_env_file_that_others_can_read(tmp_path: Path) -> None:
    settings = load_settings()
    assert secrets_are_private(settings) == "no .env here"
    Path(".env").write_text(f"NIGHTSCOUT_TOKEN={TOKEN}\n")
    Path(".env").chmod(0o644)
    with pytest.raises(LakehouseError, match=r"\.env can be read by others.*chmod 600 \.env"):
        secrets_are_private(settings)
    Path(".env").chmod(0o600)
    assert secrets_are_private(settings) == "only you can read .env"


def test_an_audit_that_could_not_be_made_does_not_pass_for_one(audit: ModuleType) -> None:
    found = {"name": "old", "version": "1.0", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2"]}]}
    report = json.dumps(
        {
            "dependencies": [
                found,
                {"name": "good", "version": "3", "vulns": []},
                {"name": "unknown", "skip_reason": "Dependency not found on PyPI and could not be audited"},
            ]
        }
    )
    result = audit.read_report(report)
    assert (result.audited, result.unknown) == (2, ("unknown",))
    assert result.vulnerable == ("old 1.0: PYSEC-1, mended in 2",)
    assert audit.read_report(report, {"CVE-1": "not reachable"}).vulnerable == ()
    assert "cannot be reached" in audit.answers("http://127.0.0.1:9", timeout_seconds=2)


def test_an_index_that_does_not_know_vulnerabilities_is_told_from_one_that_does(audit: ModuleType) -> None:
    server = HTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        # It answers with a list.
        assert audit.answers(f"http://127.0.0.1:{server.server_port}") == "its answers have no vulnerabilities"
    finally:
        server.shutdown()
        server.server_close()
        _Handler.seen.clear()


def test_the_repository_has_no_file_of_secrets() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False)
    names = [line.rpartition("/")[2] for line in listed.stdout.splitlines()]
    assert not {".env", "secrets.env", "sites.toml"} & set(names)
