"""A client for the parts of the Nightscout API that the lakehouse reads.

API v1 is read by windows of the collection's time with an explicit count, since the server otherwise adds a
window of its own (four days) and a count of its own (ten). Conditional requests by date are never made:
`Last-Modified` is the time of the newest reading, so they would hide backfill and edits.
Source: Nightscout 15.0.7, `lib/server/query.js`, `lib/server/entries.js`, `lib/api/entries/index.js`.
"""

import hashlib
import logging
import re
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec
import tenacity

from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS, DEVICE_STATUS, ENTRIES, TREATMENTS, Collection
from nightscout_lakehouse.lib.sites import Site

logger = logging.getLogger(__name__)

_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
_BODY_DEADLINE_FACTOR = 5

# A bound that no date reaches: the year 2200. Wrong clocks write dates decades ahead; they must be seen too.
FAR_FUTURE_MS = 7_258_118_400_000
# Below this, text sorts that is no date at all, such as the digits of epoch milliseconds.
EARLIEST_TEXT_MS = 946_684_800_000
_HOUR_MS = 3_600_000
_ISO_TEXT = re.compile(r"\d{4}-\d\d-\d\d")

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

    is_transient = True


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
        date_ms: Where the server's time filter sees it, in epoch milliseconds: for entries `date` where it is a number,
            for collections by text the later of the text's own digits and the instant they mean; None for neither.
        time_text: `created_at` as it came, for collections that the server filters by text.
    """

    text: str
    id: str
    hash: str
    date_ms: float | None
    time_text: str | None = None


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
    created_at: Any = None


_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_keys_decoder = msgspec.json.Decoder(_Keys)


@cache
def _trusted_certificates() -> ssl.SSLContext:
    # Reading them takes longer than asking a server for its news, and a clinic has a thousand servers.
    return httpx.create_ssl_context()


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
            verify=_trusted_certificates(),
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

    def documents(self, collection: Collection, from_ms: int, to_ms: int, count: int) -> list[Document]:
        """Documents with `from_ms <= time < to_ms`, newest first, at most `count`.

        Where the server compares text, `from_ms < 0` and `to_ms >= FAR_FUTURE_MS` leave that end open, so that text
        which is no date is found as well. A collection without a time is listed whole.
        """
        params: dict[str, str | int] = {"count": count}
        if collection.time_format == "epoch_ms":
            params |= {"find[date][$gte]": from_ms, "find[date][$lt]": to_ms}
        elif collection.time_field is not None:
            if from_ms >= 0:
                params[f"find[{collection.time_field}][$gte]"] = _iso(from_ms)
            if to_ms < FAR_FUTURE_MS:
                params[f"find[{collection.time_field}][$lt]"] = _iso(to_ms)
        return self._documents(collection, params)

    def documents_by_text(self, collection: Collection, from_ms: int, to_ms: int, count: int) -> list[Document]:
        """Documents whose second time field lies in the window: finds those whose `date` is text or missing.

        The server compares text, and stores `dateString` in UTC with a `Z`.
        """
        name = collection.text_time_field
        bounds = {f"find[{name}][$gte]": _iso(from_ms), f"find[{name}][$lt]": _iso(to_ms)}
        return self._documents(collection, {**bounds, "count": count})

    def newest_before(self, collection: Collection, before_ms: int) -> int | None:
        """A time just after the newest document below `before_ms`, or None where there is no older one."""
        bound = before_ms if collection.time_format == "epoch_ms" else _iso(before_ms)
        for document in self._documents(collection, {f"find[{collection.time_field}][$lt]": bound, "count": 1}):
            if collection.time_format == "epoch_ms":
                return None if document.date_ms is None else int(document.date_ms) + 1
            return _after_text(document, before_ms)
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

    def change_hints(self, collection: Collection, since_ms: int | None) -> ChangeHints | None:
        """Which documents API v3 reports as changed or deleted since `since_ms`; None where v3 is not offered.

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
                value = collections.get(collection.api_v3_name) if isinstance(collections, dict) else None
                return ChangeHints((), int(value) if isinstance(value, int | float) else 0)
            path = f"/api/v3/{collection.api_v3_name}/history/{since_ms}"
            body = self._json_object(path, {"limit": 1000}, headers)
        except NightscoutError as error:
            # v1 has been read by now and is complete without v3.
            logger.info("site %s: API v3 is not used (%s)", self._site.name, type(error).__name__)
            return None
        changed = [document for document in body.get("result") or [] if isinstance(document, dict)]
        times = (
            d["date"] if isinstance(d.get("date"), int | float) else _text_ms(d.get("created_at")) for d in changed
        )
        dates = tuple(float(moment) for moment in times if moment is not None)
        modified = [int(d["srvModified"]) for d in changed if isinstance(d.get("srvModified"), int | float)]
        return ChangeHints(dates, max([since_ms, *modified]))

    def _documents(self, collection: Collection, params: Mapping[str, str | int]) -> list[Document]:
        body = self._get(collection.api_path, params)
        try:
            return [_document(bytes(raw), collection) for raw in _list_decoder.decode(body)]
        except msgspec.DecodeError:
            raise NotNightscoutError(
                f"Site {self._site.name}: {self._site.url}{collection.api_path} does not send a list of "
                f"{collection.api_v3_name}.",
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
        self._check(response, body, path)
        return body

    def _check(self, response: httpx.Response, body: bytes, path: str) -> None:
        """Raise what a response other than complete JSON means."""
        name, url, status = self._site.name, self._site.url, response.status_code
        if status in (401, 403) and path in {collection.api_path for collection in COLLECTIONS[1:]}:
            # A role may be given some collections and not others.
            url += path
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
        if body.strip() == b"null" and path in (TREATMENTS.api_path, DEVICE_STATUS.api_path):
            # There Nightscout drops an error of its database and sends what it then has. That is no empty list.
            raise _TransientError("the answer is null, as when the server's database fails")
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


def _document(raw: bytes, collection: Collection) -> Document:
    text = raw.decode("utf-8", "replace").replace("\r", " ").replace("\n", " ")
    try:
        keys = _keys_decoder.decode(raw)
    except msgspec.DecodeError:
        keys = _Keys()
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    identity = next((key for key in (keys.identifier, keys.id) if isinstance(key, str) and key), None)
    is_by_text = collection.time_format == "iso_text"
    return Document(
        text=text,
        id=identity or f"{UNIDENTIFIED}{digest}",
        hash=digest,
        date_ms=_text_ms(keys.created_at) if is_by_text else _number(keys.date),
        time_text=keys.created_at if is_by_text and isinstance(keys.created_at, str) else None,
    )


def documents_from_json(texts: Iterable[str], collection: Collection = ENTRIES) -> list[Document]:
    """Documents from JSON texts, identified and hashed as those that a server sends."""
    return [_document(text.encode(), collection) for text in texts]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text_ms(value: Any) -> float | None:
    """Where ISO text stands in the server's filter, or None for what is no ISO text.

    The server compares the stored text, and may send it in another zone than it is stored in: so the later of the
    instant and the digits taken as UTC.
    """
    if not isinstance(value, str) or not _ISO_TEXT.match(value):
        return None
    try:
        moment = datetime.fromisoformat(value.strip())
    except ValueError:
        return None
    wall_clock = moment.replace(tzinfo=UTC)
    return max(wall_clock, moment if moment.tzinfo else wall_clock).timestamp() * 1000


def _after_text(document: Document, before_ms: int) -> int | None:
    """A time after a document's text, at most `before_ms`; None for text that sorts below every date."""
    if document.date_ms is not None:
        # `12:30Z` sorts after `12:30:59.999Z`: the next full hour is after both.
        return min(before_ms, (int(document.date_ms) // _HOUR_MS + 1) * _HOUR_MS)
    if (document.time_text or "") < _iso(EARLIEST_TEXT_MS):
        return None
    return before_ms


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
