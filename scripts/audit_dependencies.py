"""Hold the locked packages to the known vulnerabilities, by pip-audit.

`python scripts/audit_dependencies.py`: 1 if a package has one that is not accepted below. Where the service with the
vulnerabilities cannot be asked, as on a closed network, it says so and ends with 0: nothing was proved then.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

ROOT: Final = Path(__file__).resolve().parents[1]
UV: Final = ROOT / ".uv" / "bin" / "uv"
SERVICE: Final = "https://pypi.org/pypi"
# Every lock of this repository; one that is not there is left out.
PROJECTS: Final = (ROOT, ROOT / "superset", ROOT / "tests" / "references")
TIMEOUT_SECONDS: Final = 10

# Vulnerabilities that do not concern us, by id, with the reason and until when that was judged.
ACCEPTED: Final[Mapping[str, str]] = {}


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        audited: Packages that the service knows.
        unknown: Packages that it does not know: nothing is said of them.
        vulnerable: One line for each vulnerability that is not accepted.
    """

    audited: int
    unknown: tuple[str, ...]
    vulnerable: tuple[str, ...]


def answers(service: str = SERVICE, timeout_seconds: float = TIMEOUT_SECONDS) -> str:
    """Why the service cannot be asked; empty if it can."""
    # One question before two hundred. A mirror of the packages need not know their vulnerabilities.
    try:
        response = httpx.get(f"{service}/pip/25.0/json", timeout=timeout_seconds, follow_redirects=True)
    except httpx.HTTPError as error:
        return f"it cannot be reached ({type(error).__name__})"
    if response.status_code != httpx.codes.OK:
        return f"it answers HTTP {response.status_code}"
    try:
        is_known = "vulnerabilities" in response.json()
    except ValueError:
        is_known = False
    return "" if is_known else "its answers have no vulnerabilities"


def read_report(report: str, accepted: Mapping[str, str] = ACCEPTED) -> Audit:
    """What a report of `pip-audit --format json` says."""
    dependencies: list[dict[str, Any]] = json.loads(report)["dependencies"]
    vulnerable = []
    for each in dependencies:
        for found in each.get("vulns", ()):
            if not {found["id"], *found.get("aliases", ())} & accepted.keys():
                mended = ", ".join(found.get("fix_versions", ())) or "no version"
                vulnerable.append(f"{each['name']} {each['version']}: {found['id']}, mended in {mended}")
    unknown = tuple(each["name"] for each in dependencies if "skip_reason" in each)
    return Audit(len(dependencies) - len(unknown), unknown, tuple(vulnerable))


def audit(project: Path) -> Audit:
    """Audit the lock of a project."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")
        subprocess.run(
            [
                *(str(UV), "export", "--frozen", "--quiet", "--all-extras", "--no-emit-project"),
                *("--format", "requirements-txt", "--project", str(project), "--output-file", str(requirements)),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        finished = subprocess.run(
            [
                *(sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--disable-pip"),
                *("--require-hashes", "--progress-spinner", "off", "--desc", "off", "--aliases", "on"),
                *("--format", "json"),
            ],
            check=False,
            capture_output=True,
            text=True,
        )
    if not finished.stdout.strip():
        raise SystemExit(f"pip-audit failed: {(finished.stderr.strip().splitlines() or ['it says nothing'])[-1]}")
    return read_report(finished.stdout)


def main() -> int:
    """Audit every lock; the exit code."""
    if reason := answers():
        print(f"Vulnerabilities were NOT looked up: {SERVICE} does not tell them from here, {reason}.")
        return 0
    found = False
    for project in PROJECTS:
        if not (project / "uv.lock").is_file():
            continue
        result = audit(project)
        name = project.relative_to(ROOT).as_posix()
        print(f"{name}: {result.audited} packages without a vulnerability that is not accepted.", end=" ")
        print(f"Not known to the service: {', '.join(result.unknown)}." if result.unknown else "")
        for line in result.vulnerable:
            found = True
            print(f"  {line}")
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
