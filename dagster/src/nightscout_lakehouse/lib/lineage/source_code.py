"""Where the code is that ran: the commit, as far as it is known."""

import os
import subprocess
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlsplit, urlunsplit

from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT

_TIMEOUT_SECONDS = 5


@dataclass(frozen=True)
class SourceCode:
    """A commit of the repository.

    Attributes:
        commit: Its hash; `-dirty` follows if files differ from it.
        repository: URL of the remote, without a login; empty if there is none.
    """

    commit: str
    repository: str

    def url_of(self, path: str) -> str:
        """Where a file (or the repository) is to be found."""
        if self.repository.startswith("http"):
            return f"{self.repository.removesuffix('.git')}/blob/{self.commit.removesuffix('-dirty')}/{path}".rstrip(
                "/"
            )
        return (REPOSITORY_ROOT / path).as_uri()


@cache
def source_code() -> SourceCode | None:
    """The commit that is checked out; None outside a git repository."""
    commit = _git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
    if not commit:
        return None
    return SourceCode(commit=commit, repository=_without_login(_git("config", "--get", "remote.origin.url")))


def _without_login(url: str) -> str:
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - our own words only
            ["git", "-C", str(REPOSITORY_ROOT), *arguments],  # noqa: S607 - the user's git
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
