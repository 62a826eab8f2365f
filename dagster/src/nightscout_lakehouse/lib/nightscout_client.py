"""A client for the parts of the Nightscout API that the lakehouse reads.

API v1 is read by bounded windows of `date` with an explicit count, since the server otherwise adds a
window of its own (four days) and a count of its own (ten). Conditional requests by date are never made:
`Last-Modified` is the time of the newest reading, so they would hide backfill and edits.
Source: Nightscout 15.0.7, `lib/server/query.js`, `lib/server/entries.js`, `lib/api/entries/index.js`.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec
import tenacity

from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.sites import Site

logger = logging.getLogger(__name__)

_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
_BODY_DEADLINE_FACTOR = 5

# Begins the id of a document that came without one.
UNIDENTIFIED = "unidentified:"


class NightscoutError(LakehouseError):
    """A site could not be read. The message names the site and never holds a secret."""


class AuthenticationError(NightscoutError):
    """The server refused the token or secret. Never retried: the server delays every request after a refusal."""


class NotNightscoutError(NightscoutError):
    """Something answers at the URL, but not with what Nightscout sends."""


class UnreachableError(NightscoutError):
    """No usable answer after all attempts."""


class _TransientError(Exception):
    """An attempt failed in a way that the next may not."""

    def __init__(self, reason: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True)
class Document:
    """One document as the server sent it.

    Attributes:
        text: The JSON text, unchanged but for line breaks between tokens.
        id: `identifier`, else `_id` (API v3 shows the same under `identifier`), else made from the hash.
        hash: 128-bit BLAKE2b of the text, hexadecimal.
        date_ms: `date` where it is a number (what the server's date filter sees), else None.
    """

    text: str
    id: str
    hash: str
    date_ms: float | None


@dataclass(frozen=True)
class ServerStatus:
    """What `/api/v1/status.json` says: version, display units and the server's clock."""

    version: str
    units: str
    name: str
    clock_difference_seconds: float | None


@dataclass(frozen=True)
class Permissions:
    """What `/api/v1/verifyauth` says about the token or secret in use."""

    can_read: bool
    can_write: bool


@dataclass(frozen=True)
class ChangeHints:
    """Documents that API v3 reports as changed: their dates in epoch milliseconds, and where to go on."""

    dates_ms: tuple[float, ...]
    next_ms: int


@dataclass(frozen=True)
class FetchPolicy:
    """Time-outs and retries of one client."""

    timeout_seconds: float = 60.0
    max_attempts: int = 5
    max_retry_wait_seconds: float = 60.0


class _Keys(msgspec.Struct):
    id: Any = msgspec.field(name="_id", default=None)
    identifier: Any = None
    date: Any = None


_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_keys_decoder = msgspec.json.Decoder(_Keys)


class NightscoutClient:
    """Reads one site over one pooled connection; use as a context manager.

    Args:
        site: Which server, and the token or secret to read it with.
        policy: Time-outs and retries.
        sleep: How to wait between attempts; tests pass their own.
        transport: An httpx transport; tests pass their own.
    """

    def __init__(
        self,
        site: Site,
        policy: FetchPolicy | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._site = site
        self._policy = policy or FetchPolicy()
        self._sleep = sleep
        self._requests = 0
        # Redirects are not followed: a redirect to another host would carry the secret there.
        self._http = httpx.Client(
            headers={"Accept": "application/json", "Accept-Encoding": "gzip, deflate", **_auth_headers(site)},
            timeout=httpx.Timeout(self._policy.timeout_seconds, connect=min(15.0, self._policy.timeout_seconds)),
            follow_redirects=False,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    @property
    def requests(self) -> int:
        """Requests sent so far, retries included."""
        return self._requests

    def entries(self, from_ms: int, to_ms: int, count: int) -> list[Document]:
        """Entries of every type with `from_ms <= date < to_ms`, newest first, at most `count`."""
        return self._documents({"find[date][$gte]": from_ms, "find[date][$lt]": to_ms, "count": count})

    def entries_by_date_string(self, from_ms: int, to_ms: int, count: int) -> list[Document]:
        """Entries whose `dateString` lies in the window: finds those whose `date` is text or missing.

        The server compares text, and stores `dateString` in UTC with a `Z`.
        """
        bounds = {"find[dateString][$gte]": _iso(from_ms), "find[dateString][$lt]": _iso(to_ms)}
        return self._documents({**bounds, "count": count})

    def newest_date_before(self, before_ms: int) -> float | None:
        """The newest numeric `date` below `before_ms`, or None where there is no older entry."""
        for document in self._documents({"find[date][$lt]": before_ms, "count": 1}):
            return document.date_ms
        return None

    def status(self) -> ServerStatus:
        """What the server says of itself."""
        body = self._json_object("/api/v1/status.json")
        settings = body.get("settings")
        units = str(settings.get("units", "mg/dl")) if isinstance(settings, dict) else "mg/dl"
        epoch = body.get("serverTimeEpoch")
        difference = epoch / 1000 - time.time() if isinstance(epoch, int | float) else None
        return ServerStatus(str(body.get("version", "unknown")), units, str(body.get("name", "")), difference)

    def permissions(self) -> Permissions:
        """What the token or secret in use may do."""
        message = self._json_object("/api/v1/verifyauth").get("message")
        if not isinstance(message, dict):
            return Permissions(can_read=False, can_write=False)
        return Permissions(can_read=bool(message.get("canRead")), can_write=bool(message.get("canWrite")))

    def profile_timezone(self) -> str | None:
        """The time zone of the profile in use, as the server has it, or None."""
        profiles = _decode(self._get("/api/v1/profile.json", {"count": 1}), Any)
        newest = profiles[0] if isinstance(profiles, list) and profiles else None
        if not isinstance(newest, dict) or not isinstance(store := newest.get("store"), dict):
            return None
        profile = store.get(newest.get("defaultProfile"))
        zone = profile.get("timezone") if isinstance(profile, dict) else None
        return zone if isinstance(zone, str) and zone.strip() else None

    def change_hints(self, since_ms: int | None) -> ChangeHints | None:
        """Which entries API v3 reports as changed or deleted since `since_ms`; None where v3 is not offered.

        Nothing that was uploaded through v1 is in there, so this only says where to look again early.
        """
        token = self._site.token.get_secret_value()
        if not token:
            return None
        try:
            login = self._json_object(f"/api/v2/authorization/request/{token}")
            headers = {"Authorization": f"Bearer {login.get('token', '')}"}
            if since_ms is None:
                newest = self._json_object("/api/v3/lastModified", headers=headers).get("result")
                collections = newest.get("collections") if isinstance(newest, dict) else None
                value = collections.get("entries") if isinstance(collections, dict) else None
                return ChangeHints((), int(value) if isinstance(value, int | float) else 0)
            body = self._json_object(f"/api/v3/entries/history/{since_ms}", {"limit": 1000}, headers)
        except NightscoutError as error:
            # v1 has been read by now and is complete without v3.
            logger.info("site %s: API v3 is not used (%s)", self._site.name, type(error).__name__)
            return None
        changed = [document for document in body.get("result") or [] if isinstance(document, dict)]
        dates = tuple(float(d["date"]) for d in changed if isinstance(d.get("date"), int | float))
        modified = [int(d["srvModified"]) for d in changed if isinstance(d.get("srvModified"), int | float)]
        return ChangeHints(dates, max([since_ms, *modified]))

    def _documents(self, params: Mapping[str, str | int]) -> list[Document]:
        body = self._get("/api/v1/entries.json", params)
        try:
            return [_document(bytes(raw)) for raw in _list_decoder.decode(body)]
        except msgspec.DecodeError:
            raise NotNightscoutError(
                f"Site {self._site.name}: {self._site.url}/api/v1/entries.json does not send a list of entries.",
                "Check that the URL is that of a Nightscout server.",
            ) from None

    def _json_object(
        self, path: str, params: Mapping[str, str | int] | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        body = _decode(self._get(path, params or {}, headers), Any)
        if not isinstance(body, dict):
            raise NotNightscoutError(f"Site {self._site.name}: {self._site.url} answers, but not as Nightscout does.")
        return body

    def _get(self, path: str, params: Mapping[str, str | int], headers: Mapping[str, str] | None = None) -> bytes:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_TransientError),
            stop=tenacity.stop_after_attempt(self._policy.max_attempts),
            wait=_RetryWait(self._policy.max_retry_wait_seconds),
            sleep=self._sleep,
            before_sleep=self._log_retry,
            reraise=True,
        )
        try:
            return retrying(self._attempt, path, params, headers)
        except _TransientError as error:
            attempts = self._policy.max_attempts
            raise UnreachableError(
                f"Site {self._site.name}: {self._site.url} gave no usable answer in {attempts} "
                f"attempt{'s' if attempts > 1 else ''}: {error}.",
                "Check the URL and that the server runs; the next run tries again.",
            ) from None

    def _attempt(self, path: str, params: Mapping[str, str | int], headers: Mapping[str, str] | None) -> bytes:
        self._requests += 1
        deadline = time.monotonic() + self._policy.timeout_seconds * _BODY_DEADLINE_FACTOR
        chunks: list[bytes] = []
        try:
            with self._http.stream("GET", self._site.url + path, params=dict(params), headers=headers) as response:
                # The time-out of httpx is for each chunk: a server that drips would hold the run for ever.
                for chunk in response.iter_bytes():
                    chunks.append(chunk)
                    if time.monotonic() > deadline:
                        raise _TransientError("the answer took too long")
        except httpx.TimeoutException as error:
            raise _TransientError(f"timed out ({type(error).__name__})") from None
        except httpx.DecodingError:
            raise _TransientError("the answer is not compressed as it says") from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise _TransientError(_transport_reason(error)) from None
        body = b"".join(chunks)
        self._check(response, body)
        return body

    def _check(self, response: httpx.Response, body: bytes) -> None:
        """Raise what a response other than complete JSON means."""
        name, url, status = self._site.name, self._site.url, response.status_code
        if status in (401, 403):
            raise AuthenticationError(
                f"Site {name}: {url} refuses to be read (HTTP {status}).",
                "Set NIGHTSCOUT_TOKEN to a token whose role may read (Nightscout: Admin Tools, Subjects), "
                "or NIGHTSCOUT_API_SECRET; a wrong one is refused in the same way.",
            )
        if status in _TRANSIENT_STATUS:
            raise _TransientError(f"HTTP {status}", _retry_after_seconds(response.headers.get("retry-after")))
        if 300 <= status < 400:
            target = httpx.URL(response.headers.get("location", "")).host
            raise NotNightscoutError(
                f"Site {name}: {url} redirects" + (f" to {target}." if target else "."),
                "Set the URL to where it redirects (https instead of http, most often).",
            )
        if status == 404:
            raise NotNightscoutError(
                f"Site {name}: {url} has no Nightscout API (HTTP 404).",
                "The URL is the address of the Nightscout page, without /api or a page name.",
            )
        if status != 200:
            raise NotNightscoutError(f"Site {name}: {url} answers with HTTP {status}.")
        if body.lstrip()[:1] not in (b"[", b"{", b"n"):
            kind = "an HTML page" if b"<" in body.lstrip()[:1] else "something that is not JSON"
            raise NotNightscoutError(
                f"Site {name}: {url} sends {kind} instead of JSON.",
                "A login page, a parked host or another program answers there; check the URL.",
            )
        try:
            msgspec.json.decode(body, type=msgspec.Raw)
        except msgspec.DecodeError:
            raise _TransientError("the JSON is cut off or malformed") from None

    def _log_retry(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        wait = state.next_action.sleep if state.next_action else 0.0
        logger.warning(
            "site %s: attempt %d of %d failed (%s); next in %.1f s",
            self._site.name,
            state.attempt_number,
            self._policy.max_attempts,
            error,
            wait,
        )


class _RetryWait(tenacity.wait.wait_base):
    """Exponential back-off with jitter, or what the server asks for."""

    def __init__(self, longest_seconds: float) -> None:
        self._backoff = tenacity.wait_random_exponential(multiplier=1, max=min(30.0, longest_seconds))
        self._longest_seconds = longest_seconds

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        error = retry_state.outcome.exception() if retry_state.outcome else None
        asked = error.retry_after_seconds if isinstance(error, _TransientError) else None
        if asked is None:
            return self._backoff(retry_state)
        if asked > self._longest_seconds:
            raise _TransientError(f"the server asks to wait {asked:.0f} s, longer than the run does")
        return asked


def _auth_headers(site: Site) -> dict[str, str]:
    if token := site.token.get_secret_value():
        return {"api-secret": token}
    if secret := site.api_secret.get_secret_value():
        return {"api-secret": hashlib.sha1(secret.encode(), usedforsecurity=False).hexdigest()}
    return {}


def _document(raw: bytes) -> Document:
    text = raw.decode("utf-8", "replace").replace("\r", " ").replace("\n", " ")
    try:
        keys = _keys_decoder.decode(raw)
    except msgspec.DecodeError:
        keys = _Keys()
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    identity = next((key for key in (keys.identifier, keys.id) if isinstance(key, str) and key), None)
    is_number = isinstance(keys.date, int | float) and not isinstance(keys.date, bool)
    return Document(
        text=text,
        id=identity or f"{UNIDENTIFIED}{digest}",
        hash=digest,
        date_ms=float(keys.date) if is_number else None,
    )


def documents_from_json(texts: Iterable[str]) -> list[Document]:
    """Documents from JSON texts, identified and hashed as those that a server sends."""
    return [_document(text.encode()) for text in texts]


def _decode(body: bytes, kind: Any) -> Any:
    return msgspec.json.decode(body, type=kind)


def _iso(epoch_ms: int) -> str:
    # The text that the server compares with has four-digit years.
    clamped = min(max(epoch_ms, 0), 253402300799999)
    moment = datetime.fromtimestamp(clamped / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{clamped % 1000:03d}Z"


def _retry_after_seconds(header: str | None) -> float | None:
    if not header:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _transport_reason(error: Exception) -> str:
    text = str(error)
    if "CERTIFICATE" in text.upper() or "SSL" in text.upper():
        return f"the TLS certificate or handshake is not valid ({text[:120]})"
    if "Name or service not known" in text or "getaddrinfo" in text or "nodename" in text:
        return "the host name is not known"
    if "refused" in text.lower():
        return "the connection was refused"
    return f"{type(error).__name__}: {text[:120]}"
