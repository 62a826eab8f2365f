"""The dbt project as dbt has parsed it, for this process and, in files, for the next one.

Parsing takes two seconds of processor time for each target, reading what was parsed a twentieth of that. dbt's own
partial parsing takes half a second, and does not help another lakehouse, whose connection is another.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from nightscout_lakehouse.lib.garbage_collection import kept_from_collection

if TYPE_CHECKING:
    from dbt.contracts.graph.manifest import Manifest

logger = logging.getLogger(__name__)

_PARSED_SUFFIXES = {".sql", ".yml", ".yaml", ".md"}

# What this process has, by folder of the project, target and database, with the fingerprint that it holds for.
_PARSED: dict[tuple[Path, str, str], tuple[str, "Manifest"]] = {}


def project_fingerprint(project_dir: Path) -> str:
    """A hash of all that dbt parses, and of the versions of dbt."""
    digest = hashlib.blake2b(digest_size=16)
    for package in ("dbt-core", "dbt-duckdb", "dbt-postgres"):
        digest.update(version(package).encode())
    for path in sorted(project_dir.rglob("*")):
        if path.suffix in _PARSED_SUFFIXES:
            digest.update(str(path.relative_to(project_dir)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class ParsedProject:
    """The project for one target; dbt parses it only where nobody has since it changed.

    Attributes:
        project_dir: Folder of the project; what was parsed is kept in its `target`, where dbt keeps such things.
        target: Name of the target.
        database: Name of its database, which is in what was parsed.
        other_folder: Where it is kept when `project_dir` cannot be written, as in an image.
        parse: Has dbt parse it, and raises what is wrong with it.
    """

    project_dir: Path
    target: str
    database: str
    other_folder: Path
    parse: Callable[[], "Manifest"]

    def manifest(self) -> "Manifest":
        """What dbt's runner takes."""
        key = (self.project_dir, self.target, self.database)
        fingerprint = project_fingerprint(self.project_dir)
        if key not in _PARSED or _PARSED[key][0] != fingerprint:
            # A parsed project is some 700,000 objects.
            with kept_from_collection():
                _PARSED[key] = (fingerprint, self._read(fingerprint) or self._parse(fingerprint))
        return _PARSED[key][1]

    def manifest_file(self) -> Path:
        """What dagster-dbt takes, a `manifest.json`.

        Raises:
            OSError: It can be kept nowhere.
        """
        fingerprint = project_fingerprint(self.project_dir)
        for file in self._files("manifest", fingerprint, "json"):
            if file.is_file():
                return file
        # dbt writes it only right after it has parsed.
        manifest = self._parse(fingerprint)
        return self._keep("manifest", fingerprint, "json", lambda copy: manifest.write(str(copy)))  # type: ignore[no-untyped-call]

    def _parse(self, fingerprint: str) -> "Manifest":
        from dbt.parser.manifest import extended_mashumaro_encoder

        manifest = self.parse()
        packed: bytes = manifest.to_msgpack(extended_mashumaro_encoder)
        self._keep("parsed", fingerprint, "msgpack", lambda copy: copy.write_bytes(packed))
        return manifest

    def _read(self, fingerprint: str) -> "Manifest | None":
        from dbt.contracts.graph.manifest import Manifest
        from dbt.parser.manifest import extended_mashumuro_decoder

        for file in self._files("parsed", fingerprint, "msgpack"):
            if file.is_file():
                try:
                    return Manifest.from_msgpack(file.read_bytes(), decoder=extended_mashumuro_decoder)
                except Exception as error:
                    # Whatever is wrong with the file, the project can be parsed again.
                    logger.info("%s cannot be read, the project is parsed anew: %r", file, error)
        return None

    def _files(self, kind: str, fingerprint: str, suffix: str) -> list[Path]:
        name = f"{kind}-{self.target}-{quote(self.database, safe='')}-{fingerprint}.{suffix}"
        return [folder / name for folder in (self.project_dir / "target", self.other_folder)]

    def _keep(self, kind: str, fingerprint: str, suffix: str, write: Callable[[Path], object]) -> Path:
        """Put a whole file in place, several processes may come here at once, and remove those it replaces."""
        files = self._files(kind, fingerprint, suffix)
        for file in files:
            copy = file.with_suffix(f".{os.getpid()}.tmp")
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                write(copy)
                copy.replace(file)
            except OSError:
                if file == files[-1]:
                    raise
                continue
            for older in set(file.parent.glob(file.name.replace(fingerprint, "*"))) - {file}:
                older.unlink(missing_ok=True)
            break
        return file
