"""Write the passwords that docker-compose.yml asks for into .env: those that are missing, and never another.

Needs nothing but Python, since it runs before anything is installed.
"""

import re
import secrets
from pathlib import Path

_REQUIRED = re.compile(r"\$\{([A-Z][A-Z0-9_]*):\?")
_SET = re.compile(r"^\s*(?:export\s+)?([A-Z][A-Z0-9_]*)\s*=\s*(\S.*)?$")
# In hexadecimal, which needs no quoting anywhere; MinIO takes 40 characters at most.
_BYTES = 20
_NAMES = {"MINIO_ROOT_USER": "minio-", "LAKE_S3_ACCESS_KEY_ID": "lake-"}


def required_variables(compose: str) -> list[str]:
    """The variables without which docker-compose.yml does not start, in their order."""
    return list(dict.fromkeys(_REQUIRED.findall(compose)))


def missing_variables(compose: str, env: str) -> list[str]:
    """Those of them that a `.env` file does not set, or sets to nothing."""
    present = {found[1] for line in env.splitlines() if (found := _SET.match(line)) and found[2]}
    return [name for name in required_variables(compose) if name not in present]


def generated(name: str) -> str:
    """A new value for a variable: a name for a login, else a password."""
    if name in _NAMES:
        return _NAMES[name] + secrets.token_hex(6)
    return secrets.token_hex(_BYTES)


def complete(folder: Path) -> list[str]:
    """Append what is missing to the `.env` of a folder, which from then on only its owner reads.

    Args:
        folder: Where docker-compose.yml is.

    Returns:
        Names of the variables that were added.
    """
    file = folder / ".env"
    present = file.read_text(encoding="utf-8") if file.is_file() else ""
    missing = missing_variables((folder / "docker-compose.yml").read_text(encoding="utf-8"), present)
    if missing:
        file.touch(mode=0o600)
        file.chmod(0o600)
        begin = "" if not present or present.endswith("\n") else "\n"
        lines = [f"{name}={generated(name)}\n" for name in missing]
        with file.open("a", encoding="utf-8") as stream:
            stream.write(f"{begin}# Generated for docker-compose.yml.\n{''.join(lines)}")
    return missing


def main() -> None:
    """Complete the .env beside docker-compose.yml and say what was added."""
    added = complete(Path(__file__).resolve().parents[1])
    print(f"Added to .env: {', '.join(added)}." if added else "Nothing is missing in .env.")


if __name__ == "__main__":
    main()
