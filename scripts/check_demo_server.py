"""Replay recordings of a real Nightscout against the demo server, and compare status, headers and shape.

The demo server is given the documents that the recordings show and the clock of their time, so that lists can be
compared by length, order and fields. The recordings are not part of this repository; without them this says so.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from nightscout_lakehouse.demo import DemoOptions, DemoServer, DemoStore
from nightscout_lakehouse.lib.settings import REPOSITORY_ROOT

SECRET = "a secret of twelve"
READER, DENIED, ADMIN = "fakereader-0000000000000000", "fakedenied-0000000000000000", "fakeadmin-0000000000000000"
TOKENS = {READER: "readable", DENIED: "denied", ADMIN: "admin"}
COMPARED_HEADERS = ("etag", "last-modified", "content-encoding")

# Where the answer depends on what only the recorded server had, with the reason.
EXCEPTIONS = {
    "20-v1-entries-odd-records": "one of the odd documents was removed before the other recordings were made",
    "35-v3-entries-range": "the documents in the place of those that the recording cut are made up",
    "02-v1-entries-sgv-count-288": "an odd document was overwritten between two recordings",
    "03-v1-entries-sgv-count-100000-no-find": "an odd document was overwritten between two recordings",
    "36-v3-entries-sort-desc": "an odd document was overwritten between two recordings",
    "15b-v1-entries-if-none-match-304": "the tag is that of the recorded bytes; the contract test covers the rule",
    "21-v1-post-entries": "the posted documents were removed from the recording",
    "22-v1-post-entries-repost": "the posted documents were removed from the recording",
    "28-v1-status": "the demo has the settings that clients read, not all of them",
    "33-v3-status": "the demo serves entries only in v3",
    "34-v3-lastModified": "the demo serves entries only in v3",
    "47-v3-treatments": "the demo serves entries only in v3",
    "51-v1-status-mmol": "the demo has the settings that clients read, not all of them",
    "73-denied-v1-status-token": "the demo has the settings that clients read, not all of them",
}


class Clock:
    """The time that the server believes it is."""

    def __init__(self) -> None:
        self.moment = datetime.now(UTC)

    def __call__(self) -> datetime:
        """The time now."""
        return self.moment


def main() -> int:
    """Compare every recording; returns 1 where one differs without being a stated exception."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("NIGHTSCOUT_RECORDINGS") or REPOSITORY_ROOT.parent / "shared" / "nightscout-recordings"
    parser.add_argument("--recordings", type=Path, default=Path(default), help="folder with index.json")
    folder: Path = parser.parse_args().recordings
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if not (folder / "index.json").is_file():
        console.print(f"skipped: there are no recordings at {folder}", soft_wrap=True)
        return 0
    recordings = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("[0-9]*.json"))]
    table = Table("recording", "status", "result", box=None)
    differing = 0
    for mode in sorted({recording["server_mode"] for recording in recordings}):
        of_mode = [recording for recording in recordings if recording["server_mode"] == mode]
        # One database stood behind all modes; documents are taken from where they are shown as they are stored.
        stored = sorted(recordings, key=lambda recording: "DE_NORMALIZE" in recording["server_mode"])
        clock = Clock()
        options = DemoOptions(
            default_roles="denied" if "denied" in mode else "readable",
            api_secret=SECRET,
            tokens=TOKENS,
            auth_fail_delay_seconds=0.0,
            denormalize_dates="DE_NORMALIZE" in mode,
            units="mmol" if "mmol" in mode else "mg/dl",
        )
        identifiers: dict[str, str] = {}
        store, waiting = _store(stored, mode, clock)
        with DemoServer(store, options) as server:
            for recording in of_mode:
                clock.moment = datetime.fromtimestamp(_seconds(recording), UTC)
                while waiting and _created_seconds(waiting[0]) <= clock.moment.timestamp():
                    store.put(waiting.pop(0))
                problems = compare(recording, server.url, identifiers)
                reason = EXCEPTIONS.get(recording["name"])
                differing += bool(problems) and reason is None
                result = "same" if not problems else ("accepted: " + reason if reason else "; ".join(problems))
                table.add_row(recording["name"], str(recording["response"]["status"]), result)
    console.print(table)
    console.print(f"{len(recordings)} recordings, {differing} differ")
    return 1 if differing else 0


def compare(recording: dict[str, Any], url: str, identifiers: dict[str, str]) -> list[str]:
    """What differs between a recorded exchange and the demo server's answer to the same request.

    Args:
        recording: The exchange.
        url: The demo server.
        identifiers: Recorded identifiers of created documents with those that the demo gave; added to.
    """
    request, expected = recording["request"], recording["response"]
    for recorded, given in identifiers.items():
        request["path"] = request["path"].replace(recorded, given)
    answer = _replay(request, url, is_refused=expected["status"] == 401)
    if answer.status_code != expected["status"]:
        return [f"status is {answer.status_code}"]
    if answer.status_code == 201:
        identifiers[expected["body"]["identifier"]] = answer.json()["identifier"]
    problems = []
    media, recorded_media = (
        value.partition(";")[0]
        for value in (answer.headers.get("content-type", ""), expected["headers"].get("content-type", ""))
    )
    if media != recorded_media:
        problems.append(f"content type is {media}, not {recorded_media}")
    if isinstance(expected.get("body"), list):
        problems += [
            f"header {name} is missing" for name in COMPARED_HEADERS[:2] if _is_missing(name, expected, answer)
        ]
    if "body" in expected:
        problems += _differences(expected["body"], answer.json(), expected.get("items_total"))
    return problems


def _replay(request: dict[str, Any], url: str, *, is_refused: bool) -> httpx.Response:
    headers = dict(request["conditional_headers"])
    names = {name.lower() for name in request["header_names"]}
    path = request["path"]
    if "authorization" in names:
        token = httpx.get(f"{url}/api/v2/authorization/request/{ADMIN}").json()["token"]
        headers["Authorization"] = f"Bearer {token}"
    if "api-secret" in names:
        secret = "another secret" if is_refused else SECRET
        headers["api-secret"] = hashlib.sha1(secret.encode(), usedforsecurity=False).hexdigest()
    return httpx.request(
        request["method"],
        url + path,
        params=[tuple(pair) for pair in request["query_pairs"]] or None,
        headers=headers,
        json=request["body"],
    )


def _is_missing(name: str, expected: dict[str, Any], answer: httpx.Response) -> bool:
    return name in expected["headers"] and name not in answer.headers


def _differences(expected: Any, actual: Any, total: int | None) -> list[str]:
    if isinstance(expected, dict) and isinstance(expected.get("result"), list) and isinstance(actual, dict):
        return _differences(expected["result"], actual.get("result"), total)
    if type(expected) is not type(actual):
        return [f"the body is a {type(actual).__name__}, not a {type(expected).__name__}"]
    if isinstance(expected, dict):
        return [f"{key} is missing" for key in expected if key not in actual] + [
            f"{key} is more than was recorded" for key in actual if key not in expected
        ]
    if not isinstance(expected, list):
        return [] if expected == actual else [f"the body is {actual!r}"]
    problems = [] if len(actual) == (total or len(expected)) else [f"{len(actual)} items, not {total}"]
    for position, (recorded, shown) in enumerate(zip(expected, actual, strict=False)):
        if isinstance(recorded, dict) and recorded.keys() != shown.keys():
            problems.append(f"item {position} differs in {sorted(recorded.keys() ^ shown.keys())}")
            break
        # Treatments, device status and profiles are shown whole; entries are partly made up, and known by their date.
        is_whole = isinstance(recorded, dict) and recorded.keys() & {"eventType", "pump", "store"}
        if isinstance(recorded, dict) and (
            recorded.get("date") != shown.get("date") or (is_whole and recorded != shown)
        ):
            problems.append(f"item {position} is another one")
            break
    return problems


def _store(recordings: Sequence[dict[str, Any]], mode: str, clock: Clock) -> tuple[DemoStore, list[dict[str, Any]]]:
    """A store, and the entries that the recordings show (made-up ones where lists were cut), by their creation."""
    # What a recorded request made is made again by the replay.
    made_by_requests = {
        document.get("_id") or document.get("identifier")
        for recording in recordings
        if recording["server_mode"] == mode
        and recording["request"]["method"] == "POST"
        and recording["response"]["status"] in (200, 201)
        for document in _as_list(recording["response"]["body"])
    }
    shown: dict[str, dict[str, dict[str, Any]]] = {}
    lists = []
    for recording in recordings:
        path, response = recording["request"]["path"], recording["response"]
        if recording["request"]["method"] != "GET" or not isinstance(response.get("body"), list):
            continue
        collection = path.removeprefix("/api/v1/").partition("/")[0].partition(".")[0]
        last = [response["last_item"]] if isinstance(response.get("last_item"), dict) else []
        for document in [*response["body"], *last]:
            identity = document.get("_id", "")
            is_made = {identity, document.get("identifier", identity)} & made_by_requests
            # One with a date ahead was removed between two recordings.
            is_ahead = isinstance(document.get("date"), int | float) and document["date"] / 1000 > _seconds(recording)
            if not is_made and not is_ahead:
                held = {k: v for k, v in document.items() if k != "mills" or collection != "entries"}
                shown.setdefault(collection, {}).setdefault(identity, held)
        if collection == "entries" and response.get("items_truncated"):
            lists.append(response)
    entries: dict[str, Any] = dict(shown.get("entries", {}))
    for response in sorted(lists, key=lambda item: int(item["items_total"])):
        _fill(entries, response)
    store = DemoStore((), shown.get("treatments", {}).values(), list(shown.get("profile", {}).values()), now=clock)
    store.device_status = list(shown.get("devicestatus", {}).values())
    return store, sorted(entries.values(), key=_created_seconds)


def _fill(entries: dict[str, Any], response: dict[str, Any]) -> None:
    """Make up the documents that a cut list does not show, between the last shown and its end."""
    high, low = response["body"][-1]["date"], response["last_item"]["date"]
    held = sum(1 for d in entries.values() if isinstance(d.get("date"), int | float) and low < d["date"] < high)
    missing = response["items_total"] - len(response["body"]) - 1 - held
    for number in range(1, missing + 1):
        date = int(high + (low - high) * number / (missing + 1)) + 7
        text = datetime.fromtimestamp(date / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        identity = f"{date:024x}"
        entries[identity] = {
            **response["last_item"],
            "_id": identity,
            "date": date,
            "dateString": text,
            "sysTime": text,
        }


def _created_seconds(document: dict[str, Any]) -> float:
    if "srvCreated" in document:
        return float(document["srvCreated"]) / 1000
    # An id of MongoDB begins with its second of creation.
    return float(int(str(document["_id"])[:8], 16))


def _seconds(recording: dict[str, Any]) -> float:
    moment: datetime = parsedate_to_datetime(recording["response"]["headers"]["date"])
    return moment.timestamp()


def _as_list(body: Any) -> list[dict[str, Any]]:
    return body if isinstance(body, list) else [body]


if __name__ == "__main__":
    sys.exit(main())
