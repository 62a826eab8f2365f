"""A server that answers as Nightscout 15 does: entries, treatments, profile, status and access, over API v1 to v3.

What it must keep to is in `tests/contract/nightscout_facts.py`.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nightscout_lakehouse.demo.person import Person
from nightscout_lakehouse.demo.query import (
    DEFAULT_WINDOW_MS,
    Document,
    Query,
    QueryError,
    newest_first,
    parse_count,
    parse_find,
)
from nightscout_lakehouse.demo.store import DemoStore, new_identifier
from nightscout_lakehouse.lib.errors import ConfigurationError

VERSION = "15.0.7"
_CACHE_WINDOW = timedelta(days=2)
_TOKEN_HOURS = 8
_TYPES = ("sgv", "mbg", "cal", "etc")
_V3_LIMIT = 1000


@dataclass(frozen=True)
class DemoOptions:
    """How a server is set up.

    Attributes:
        default_roles: `readable`, or `denied`: then only a token or the secret may read.
        api_secret: The API secret; empty for none.
        tokens: Access tokens with their role: `readable`, `admin` or `denied`.
        auth_fail_delay_seconds: How long requests are held after a refused login (5 in Nightscout).
        units: Display units of status.json.
        denormalize_dates: Send `dateString` and `created_at` in the local zone and no `utcOffset`.
        closed_collections: Of `treatments`, `device_status`, `profiles`, those that no role may read.
    """

    default_roles: str = "readable"
    api_secret: str = ""
    tokens: Mapping[str, str] = field(default_factory=dict)
    auth_fail_delay_seconds: float = 5.0
    units: str = "mg/dl"
    denormalize_dates: bool = False
    closed_collections: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Access:
    can_read: bool
    can_write: bool
    subject: str = "anonymous"
    has_failed: bool = False


def create_app(store: DemoStore | None = None, options: DemoOptions | None = None) -> Starlette:
    """The server as an ASGI application."""
    site = _Site(store or DemoStore.of(Person()), options or DemoOptions())
    v1, v3 = "/api/v1", "/api/v3"
    routes = [
        Route("/api/versions", site.versions),
        Route("/api/versions.json", site.versions),
        Route(f"{v1}/status.json", site.status),
        Route(f"{v1}/status", site.status),
        Route(f"{v1}/verifyauth", site.verify_auth),
        Route(f"{v1}/entries", site.post_entries, methods=["POST"]),
        Route(f"{v1}/entries.json", site.post_entries, methods=["POST"]),
        Route(f"{v1}/entries/{{spec}}", site.delete_entry, methods=["DELETE"]),
        Route(f"{v1}/entries{{suffix:path}}", site.entries),
        Route(f"{v1}/echo/entries/{{spec}}", site.echo),
        *(
            Route(f"{v1}/{name}{ending}", handler, methods=methods)
            for name in ("treatments", "devicestatus")
            for ending in ("", ".json")
            for handler, methods in ((site.documents, ["GET"]), (site.post, ["POST", "PUT"]), (site.delete, ["DELETE"]))
        ),
        *(Route(f"{v1}/profile{ending}", site.newest_profiles) for ending in ("", ".json")),
        *(Route(f"{v1}/profile{ending}", site.post, methods=["POST", "PUT"]) for ending in ("", ".json")),
        *(Route(f"{v1}/profiles{ending}", site.documents) for ending in ("", ".json")),
        *(
            Route(f"{v1}/{name}/{{spec}}", site.delete, methods=["DELETE"])
            for name in ("treatments", "devicestatus", "profile")
        ),
        Route("/api/v2/authorization/request/{token}", site.login),
        Route(f"{v3}/version", site.v3_version),
        Route(f"{v3}/status", site.v3_status),
        Route(f"{v3}/lastModified", site.v3_last_modified),
        Route(f"{v3}/entries", site.v3_search),
        Route(f"{v3}/entries", site.v3_create, methods=["POST"]),
        Route(f"{v3}/{{collection}}/history/{{since}}", site.v3_history),
        Route(f"{v3}/entries/{{identifier}}", site.v3_get),
        Route(f"{v3}/entries/{{identifier}}", site.v3_delete, methods=["DELETE"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(GZipMiddleware, minimum_size=1024)])


class DemoServer:
    """Serves an application on a free port of 127.0.0.1 from a thread; use as a context manager.

    Args:
        store: The documents; the made-up person's if None.
        options: How the server is set up.
        app: Another application to serve in its place.
    """

    def __init__(
        self, store: DemoStore | None = None, options: DemoOptions | None = None, app: Starlette | None = None
    ) -> None:
        self._app = app or create_app(store, options)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(self._app, log_level="error", lifespan="off", access_log=False))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def __enter__(self) -> Self:
        self._socket.listen(128)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("The demo server did not start.")
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._socket.close()


def serve_forever(
    *, port: int, host: str = "127.0.0.1", store: DemoStore | None = None, options: DemoOptions | None = None
) -> None:
    """Serve until the process is interrupted.

    Raises:
        ConfigurationError: The port is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise ConfigurationError(
                f"Port {port} on {host} is in use by another program.", "Give another one with --port."
            ) from None
    uvicorn.run(create_app(store, options), host=host, port=port, log_level="warning", lifespan="off")


class _Site:
    """The handlers of one server."""

    def __init__(self, store: DemoStore, options: DemoOptions) -> None:
        self._store = store
        self._options = options
        self._key = secrets.token_bytes(32)
        self._held_until: dict[str, float] = {}

    # Access

    async def _access(self, request: Request) -> _Access:
        access = self._identify(request)
        address = request.client.host if request.client else ""
        held = self._held_until.get(address, 0.0) - time.monotonic()
        if held > 0:
            await asyncio.sleep(held)
        if access.has_failed:
            start = max(time.monotonic(), self._held_until.get(address, 0.0))
            self._held_until[address] = start + self._options.auth_fail_delay_seconds
        elif access.subject != "anonymous":
            self._held_until.pop(address, None)
        return access

    def _identify(self, request: Request) -> _Access:
        header = request.headers.get("api-secret", "")
        header_token = header.removeprefix("token=")
        secret = self._options.api_secret
        if header:
            if secret and header.lower() in (
                hashlib.sha1(secret.encode(), usedforsecurity=False).hexdigest(),
                hashlib.sha512(secret.encode()).hexdigest(),
            ):
                return _Access(True, True, "admin")
            if header_token in self._options.tokens:
                return self._of_role(header_token)
            return self._anonymous(has_failed=True)
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        for presented in (bearer, request.query_params.get("token", "")):
            if presented.count(".") == 2 and (subject := self._subject(presented)):
                return self._of_role(subject)
        if bearer:
            return self._anonymous(has_failed=True)
        token = request.query_params.get("token", "")
        return self._of_role(token) if token in self._options.tokens else self._anonymous()

    def _anonymous(self, *, has_failed: bool = False) -> _Access:
        return _Access(self._options.default_roles == "readable" and not has_failed, False, has_failed=has_failed)

    def _of_role(self, token: str) -> _Access:
        role = self._options.tokens.get(token, "denied")
        return _Access(role in ("readable", "admin"), role == "admin", token)

    def _jwt(self, token: str, now: int) -> str:
        parts = [{"alg": "HS256", "typ": "JWT"}, {"accessToken": token, "iat": now, "exp": now + _TOKEN_HOURS * 3600}]
        text = ".".join(_base64(orjson.dumps(part)) for part in parts)
        return f"{text}.{_base64(hmac.new(self._key, text.encode(), hashlib.sha256).digest())}"

    def _subject(self, jwt: str) -> str | None:
        text, _, signature = jwt.rpartition(".")
        if not hmac.compare_digest(signature, _base64(hmac.new(self._key, text.encode(), hashlib.sha256).digest())):
            return None
        body = text.partition(".")[2]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return str(claims["accessToken"]) if claims["exp"] > time.time() else None

    async def login(self, request: Request) -> Response:
        token = request.path_params["token"]
        if token not in self._options.tokens:
            address = request.client.host if request.client else ""
            self._held_until[address] = time.monotonic() + self._options.auth_fail_delay_seconds
            return _unauthorized()
        now = int(time.time())
        groups = {"readable": [["*:*:read"]], "admin": [["*"]]}.get(self._options.tokens[token], [[]])
        return _json(
            {
                "token": self._jwt(token, now),
                "sub": token.partition("-")[0],
                "permissionGroups": groups,
                "iat": now,
                "exp": now + _TOKEN_HOURS * 3600,
            }
        )

    async def verify_auth(self, request: Request) -> Response:
        access = await self._access(request)
        known = access.subject != "anonymous"
        message = {
            "canRead": access.can_read,
            "canWrite": access.can_write,
            "isAdmin": access.subject == "admin",
            "message": "OK" if known or access.can_read else "UNAUTHORIZED",
            "rolefound": "FOUND" if known else "NOTFOUND",
            "permissions": "ROLE" if known else "DEFAULT",
        }
        return _json({"status": 200, "message": message})

    # API v1

    async def versions(self, _: Request) -> Response:
        versions = (("1.0.0", "v1"), ("2.0.0", "v2"), ("3.0.3-alpha", "v3"))
        return _json([{"version": version, "url": f"/api/{path}"} for version, path in versions])

    async def status(self, request: Request) -> Response:
        if not (await self._access(request)).can_read:
            return _unauthorized()
        now = self._store.now()
        return _json(
            {
                "status": "ok",
                "name": "nightscout",
                "version": VERSION,
                "serverTime": _zulu(now),
                "serverTimeEpoch": int(now.timestamp() * 1000),
                "apiEnabled": True,
                "careportalEnabled": True,
                "boluscalcEnabled": False,
                "settings": {
                    "units": self._options.units,
                    "timeFormat": 24,
                    "authDefaultRoles": self._options.default_roles,
                    "thresholds": {"bgHigh": 260, "bgTargetTop": 180, "bgTargetBottom": 80, "bgLow": 55},
                },
                "extendedSettings": {},
                "authorized": None,
            }
        )

    async def entries(self, request: Request) -> Response:
        if not (await self._access(request)).can_read:
            return _unauthorized()
        suffix = request.path_params["suffix"]
        path, _, extension = suffix.partition(".")
        spec = path.strip("/")
        if extension not in ("", "json", "csv", "tsv", "txt") or (path and not path.startswith("/")):
            return Response("Not Found", 404, media_type="text/html")
        if spec and spec not in _TYPES and len(spec) == 24:
            return self._entry(spec)
        if spec and spec not in _TYPES:
            return Response(f"Cannot GET /api/v1/entries/{spec}", 404, media_type="text/html")
        try:
            found = self._find_entries(request, spec or None)
        except QueryError as error:
            return _mongo_error(error)
        if extension in ("csv", "tsv", "txt") or (not extension and "json" not in request.headers.get("accept", "")):
            return self._as_text(found, "," if extension == "csv" else "\t")
        return _conditional(request, found)

    def _find_entries(self, request: Request, spec: str | None) -> list[Document]:
        now = self._store.now()
        query = self._query(request, "date", spec)
        count = parse_count(request.query_params.get("count"), 10)
        is_newest = count > 0 and request.query_params.get("sort[date]") != "1"
        documents = self._store.entries(query, newest=count if is_newest else None)
        if count <= 0:
            return newest_first(documents, max(len(documents), 1), oldest=False) if query.is_time_bounded else []
        from_cache = query.only_type and not query.is_time_bounded
        oldest = request.query_params.get("sort[date]") == "1"
        if from_cache:
            recent = [d for d in documents if d["date"] >= (now - _CACHE_WINDOW).timestamp() * 1000]
            if count <= len(recent):
                return [{**self._shown(d), "mills": d["date"]} for d in newest_first(recent, count, oldest=oldest)]
        return [self._shown(document) for document in newest_first(documents, count, oldest=oldest)]

    def _shown(self, document: Document, field: str = "dateString") -> Document:
        if not self._options.denormalize_dates or not _is_date(str(document.get(field))):
            return document
        offset = timedelta(minutes=document.get("utcOffset", 0))
        moment = datetime.fromisoformat(document[field]) + offset
        sign, minutes = ("-" if offset < timedelta() else "+"), int(abs(offset).total_seconds() // 60)
        text = f"{_zulu(moment)[:-1]}{sign}{minutes // 60:02d}{minutes % 60:02d}"
        return {key: value for key, value in document.items() if key != "utcOffset"} | {field: text}

    def _query(self, request: Request, time_field: str, spec: str | None = None) -> Query:
        now = self._store.now()
        start = now - timedelta(milliseconds=DEFAULT_WINDOW_MS)
        return parse_find(
            request.query_params.multi_items(),
            time_field=time_field,
            now_ms=now.timestamp() * 1000,
            now_text=_zulu(start),
            forced_type=spec,
        )

    def _entry(self, identifier: str) -> Response:
        document = self._store.get(identifier)
        if document is None:
            return _mongo_error(QueryError(f"No such id: '{identifier}'"))
        return _json([document])

    def _as_text(self, documents: list[Document], separator: str) -> Response:
        rows = [
            separator.join(_quoted(d.get(name)) for name in ("dateString", "date", "sgv", "direction", "device"))
            for d in documents
        ]
        kind = "text/csv" if separator == "," else "text/plain"
        return Response("\r\n".join(rows), media_type=kind)

    async def echo(self, request: Request) -> Response:
        if not (await self._access(request)).can_read:
            return _unauthorized()
        spec = request.path_params["spec"].removesuffix(".json")
        try:
            query = self._query(request, "date", spec)
        except QueryError as error:
            return _mongo_error(error)
        body = {
            "query": query.parsed,
            "input": {"find": {"type": spec}},
            "params": {"echo": "entries", "model": spec},
            "storage": "entries",
        }
        return _json(body)

    async def post_entries(self, request: Request) -> Response:
        if not (await self._access(request)).can_write:
            return _unauthorized()
        body = orjson.loads(await request.body())
        documents = body if isinstance(body, list) else [body]
        return _json([self._store.upsert(_normalized(document)) for document in documents])

    async def delete_entry(self, request: Request) -> Response:
        if not (await self._access(request)).can_write:
            return _unauthorized()
        gone = self._store.remove(request.path_params["spec"].removesuffix(".json"))
        return _json({"n": int(gone), "ok": 1})

    async def documents(self, request: Request) -> Response:
        """Treatments, device status, or profiles by condition."""
        if not self._may_read(await self._access(request), request):
            return _unauthorized()
        name, time_field = _collection(request)
        try:
            query = self._query(request, time_field)
        except ValueError:
            # The error of the query is dropped, and what there is by then is sent.
            return _json(None)
        default = {"treatments": 1000 if query.has_find else 100}.get(name, 10)
        documents = self._store.found(name, query)
        count = parse_count(request.query_params.get("count"), default) or len(documents)
        is_ascending = request.query_params.get(f"sort[{time_field}]") == "1"
        ordered = documents if is_ascending else documents[::-1]
        shown = [self._shown(document, "created_at") for document in ordered[:count]]
        if name == "treatments":
            return _conditional(request, [_with_amounts(document) for document in shown])
        if name == "device_status":
            shown = [document | {"mills": _mills(document)} for document in shown]
        return _json(shown)

    async def newest_profiles(self, request: Request) -> Response:
        if not self._may_read(await self._access(request), request):
            return _unauthorized()
        profiles = sorted(self._store.profiles, key=lambda d: str(d.get("startDate", "")), reverse=True)
        return _json(profiles[: parse_count(request.query_params.get("count"), 10)])

    async def post(self, request: Request) -> Response:
        if not (await self._access(request)).can_write:
            return _unauthorized()
        body = orjson.loads(await request.body())
        documents = body if isinstance(body, list) else [body]
        name, _ = _collection(request)
        if name == "treatments":
            parts = [part for d in documents for part in _normalized_treatment(d, self._store.now())]
            return _json([self._store.upsert_by(name, part, *_identity(part)) for part in parts])
        created = ({"created_at": _zulu(self._store.now()), **document} for document in documents)
        return _json([self._store.upsert_by(name, d, *(["_id"] if "_id" in d else [])) for d in created])

    async def delete(self, request: Request) -> Response:
        if not (await self._access(request)).can_write:
            return _unauthorized()
        name, time_field = _collection(request)
        identifier = request.path_params.get("spec", "").removesuffix(".json")
        pairs = [("find[_id]", identifier)] if identifier else request.query_params.multi_items()
        query = parse_find(pairs, time_field=time_field, now_ms=0, now_text=_zulu(self._store.now()))
        return _json({"n": self._store.remove_found(name, query), "ok": 1})

    def _may_read(self, access: _Access, request: Request) -> bool:
        return access.can_read and _collection(request)[0] not in self._options.closed_collections

    # API v3

    def _v3_refusal(self, request: Request) -> Response | None:
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not bearer:
            return _v3_error(401, "Missing or bad access token or JWT")
        subject = self._subject(bearer) if bearer.count(".") == 2 else None
        if subject is None:
            return _v3_error(401, "Bad access token or JWT")
        return None if self._of_role(subject).can_read else _v3_error(403, "Missing permission api:entries:read")

    async def v3_version(self, _: Request) -> Response:
        result = {
            "version": VERSION,
            "apiVersion": "3.0.3-alpha",
            "srvDate": int(self._store.now().timestamp() * 1000),
            "storage": {"storage": "mongodb", "version": "6.0.0"},
        }
        return _json({"status": 200, "result": result})

    async def v3_status(self, request: Request) -> Response:
        if refusal := self._v3_refusal(request):
            return refusal
        result = {
            "version": VERSION,
            "apiVersion": "3.0.3-alpha",
            "srvDate": int(self._store.now().timestamp() * 1000),
            "apiPermissions": {"entries": "r", "treatments": "r", "profile": "r", "devicestatus": "r"},
        }
        return _json({"status": 200, "result": result})

    async def v3_last_modified(self, request: Request) -> Response:
        if refusal := self._v3_refusal(request):
            return refusal
        newest = {
            name: max((_modified(document) for document in documents), default=0)
            for name, documents in (
                ("entries", self._store.all_entries()),
                ("treatments", self._store.all_treatments()),
            )
        }
        result = {"srvDate": int(self._store.now().timestamp() * 1000), "collections": newest}
        return _json({"status": 200, "result": result})

    async def v3_search(self, request: Request) -> Response:
        if refusal := self._v3_refusal(request):
            return refusal
        params = request.query_params
        raw_limit, skip = params.get("limit", str(_V3_LIMIT)), params.get("skip", "0")
        if not raw_limit.isdigit() or not 1 <= int(raw_limit) <= _V3_LIMIT:
            return _v3_error(400, "Parameter limit out of tolerance")
        if not skip.isdigit():
            return _v3_error(400, "Parameter skip out of tolerance")
        if "sort" in params and "sort$desc" in params:
            return _v3_error(400, "Parameters sort and sort_desc cannot be combined")
        documents = [document for document in self._store.all_entries() if document.get("isValid") is not False]
        for name, raw in params.multi_items():
            column, _, operator = name.partition("$")
            if column in ("limit", "skip", "sort", "fields", "token", "now"):
                continue
            compare = _V3_OPERATORS.get(operator or "eq")
            if compare is None:
                return _v3_error(400, f"Bad or missing filter operator {operator}")
            bound = _v3_value(column, raw)
            documents = [d for d in documents if compare(_v3_value(column, d.get(column)), bound)]
        order = params.get("sort") or params.get("sort$desc") or "date"
        documents.sort(key=lambda d: str(d.get(order, "")), reverse="sort$desc" in params)
        page = [_v3_shown(d) for d in documents[int(skip) : int(skip) + int(raw_limit)]]
        if fields := params.get("fields", ""):
            names = [name for name in fields.split(",") if name != "_all"]
            page = [{name: d[name] for name in names if name in d} for d in page] if names else page
        return _json({"status": 200, "result": page})

    async def v3_history(self, request: Request) -> Response:
        if refusal := self._v3_refusal(request):
            return refusal
        since = request.path_params["since"]
        if not since.isdigit():
            return _v3_error(400, "Bad or missing Last-Modified header/parameter")
        collection = request.path_params["collection"]
        if collection not in ("entries", "treatments"):
            return _json({"status": 404}, 404)
        documents = self._store.all_entries() if collection == "entries" else self._store.all_treatments()
        changed = [d for d in documents if d.get("srvModified", 0) > int(since)]
        changed.sort(key=lambda d: int(d["srvModified"]))
        return _json({"status": 200, "result": [_v3_shown(d) for d in changed[:_V3_LIMIT]]})

    async def v3_get(self, request: Request) -> Response:
        if refusal := self._v3_refusal(request):
            return refusal
        document = self._store.get(request.path_params["identifier"])
        if document is None:
            return _json({"status": 404}, 404)
        if document.get("isValid") is False:
            return _json({"status": 410}, 410)
        return _json({"status": 200, "result": _v3_shown(document)})

    async def v3_create(self, request: Request) -> Response:
        if refusal := self._v3_write_refusal(request):
            return refusal
        body = orjson.loads(await request.body())
        now = int(self._store.now().timestamp() * 1000)
        identifier = body.get("identifier") or new_identifier({**body, "v3": True}, self._store.now())
        moment = datetime.fromtimestamp(body["date"] / 1000, UTC)
        document = {
            "_id": new_identifier(body, self._store.now()),
            **body,
            "created_at": _zulu(moment),
            "identifier": identifier,
            "srvModified": now,
            "srvCreated": now,
            "subject": self._v3_subject(request),
        }
        self._store.remove(identifier)
        self._store.put(document)
        return _json({"status": 201, "identifier": identifier, "lastModified": now}, 201)

    async def v3_delete(self, request: Request) -> Response:
        if refusal := self._v3_write_refusal(request):
            return refusal
        identifier = request.path_params["identifier"]
        document = self._store.get(identifier)
        if document is None:
            return _json({"status": 404}, 404)
        self._store.remove(identifier)
        if request.query_params.get("permanent") != "true":
            now = int(self._store.now().timestamp() * 1000)
            gone = {"isValid": False, "srvModified": now, "modifiedBy": self._v3_subject(request)}
            self._store.put({**document, **gone})
        return _json({"status": 200})

    def _v3_write_refusal(self, request: Request) -> Response | None:
        if refusal := self._v3_refusal(request):
            return refusal
        token = self._v3_token(request)
        return None if self._of_role(token).can_write else _v3_error(403, "Missing permission api:entries:create")

    def _v3_token(self, request: Request) -> str:
        return self._subject(request.headers["authorization"].removeprefix("Bearer ").strip()) or ""

    def _v3_subject(self, request: Request) -> str:
        return self._v3_token(request).partition("-")[0]


_V3_OPERATORS: Mapping[str, Any] = {
    "eq": lambda value, bound: value == bound,
    "ne": lambda value, bound: value != bound,
    "gt": lambda value, bound: type(value) is type(bound) and value > bound,
    "gte": lambda value, bound: type(value) is type(bound) and value >= bound,
    "lt": lambda value, bound: type(value) is type(bound) and value < bound,
    "lte": lambda value, bound: type(value) is type(bound) and value <= bound,
}


def _v3_value(column: str, value: Any) -> Any:
    if column in ("date", "srvModified", "srvCreated") and isinstance(value, str) and not value.isdigit():
        return datetime.fromisoformat(value).timestamp() * 1000
    if isinstance(value, str) and value.lstrip("-").isdigit():
        return float(value)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _v3_shown(document: Document) -> Document:
    shown = {key: value for key, value in document.items() if key != "_id"}
    shown.setdefault("identifier", document["_id"])
    # Where nothing was stored, Nightscout makes it up from the time of the document.
    shown.setdefault("srvModified", document.get("date"))
    shown.setdefault("srvCreated", document.get("date"))
    return shown


def _modified(document: Document) -> int:
    value = document.get("srvModified", document.get("date", 0))
    return int(value) if isinstance(value, int | float) else 0


def _normalized(document: Document) -> Document:
    """What a POST stores: the time as text in UTC, its offset, and `sysTime`."""
    text = document.get("dateString")
    if text is None and "date" in document:
        moment, offset = datetime.fromtimestamp(document["date"] / 1000, UTC), timedelta()
        return {**document, "utcOffset": int(offset.total_seconds()), "sysTime": _zulu(moment)}
    moment = datetime.fromisoformat(str(text))
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    offset = moment.utcoffset() or timedelta()
    zulu = _zulu(moment)
    return {**document, "dateString": zulu, "utcOffset": int(offset.total_seconds() // 60), "sysTime": zulu}


# Path of a collection, its name in the store, and the field that it is found by.
_COLLECTIONS = {
    "treatments": ("treatments", "created_at"),
    "devicestatus": ("device_status", "created_at"),
    "profile": ("profiles", "startDate"),
    "profiles": ("profiles", "startDate"),
}


def _collection(request: Request) -> tuple[str, str]:
    return _COLLECTIONS[request.url.path.split("/")[3].partition(".")[0]]


def _with_amounts(document: Document) -> Document:
    """A treatment as the server shows it: insulin and carbohydrates as numbers, null where there is none."""
    return {**document, "carbs": _amount(document.get("carbs")), "insulin": _amount(document.get("insulin"))}


def _amount(value: Any) -> float | None:
    try:
        return None if value is None else float(value) if float(value) % 1 else int(float(value))
    except ValueError:
        return None


def _mills(document: Document) -> int | None:
    text = str(document.get("created_at"))
    return int(datetime.fromisoformat(text).timestamp() * 1000) if _is_date(text) else None


def _identity(treatment: Document) -> tuple[str, ...]:
    """What a repost of a treatment is known by."""
    return ("_id",) if "_id" in treatment else ("created_at", "eventType")


def _normalized_treatment(document: Document, now: datetime) -> list[Document]:
    """What a POST stores: the time in UTC with its offset, numbers as numbers, a pre-bolus as two documents."""
    text = str(document.get("created_at"))
    moment = datetime.fromisoformat(text) if _is_date(text) else now
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    offset = int((moment.utcoffset() or timedelta()).total_seconds() // 60)
    stored = {**document, "created_at": _zulu(moment), "utcOffset": offset}
    for name in ("carbs", "insulin", "percent", "relative", "preBolus", "targetTop", "targetBottom", "glucose"):
        if name in stored:
            stored[name] = _amount(stored[name])
            if not stored[name]:
                del stored[name]
    if "glucose" not in stored:
        stored = {key: value for key, value in stored.items() if key not in ("glucoseType", "units")}
    minutes = stored.get("preBolus", 0)
    if not minutes:
        return [stored]
    later = {"created_at": _zulu(moment + timedelta(minutes=minutes)), "eventType": stored.get("eventType")}
    amounts = {"carbs": stored.pop("carbs")} if "carbs" in stored else {}
    notes = {"notes": stored["notes"]} if stored.get("notes") else {}
    return [stored, {**later, **amounts, **notes}]


def _json(body: Any, status: int = 200) -> Response:
    content = orjson.dumps(body)
    headers = {"ETag": _etag(content)}
    return Response(content, status, media_type="application/json; charset=utf-8", headers=headers)


def _etag(content: bytes) -> str:
    digest = base64.b64encode(hashlib.sha1(content, usedforsecurity=False).digest()).decode().rstrip("=")
    return f'W/"{len(content):x}-{digest}"'


def _conditional(request: Request, documents: list[Document]) -> Response:
    """A list with its ETag, and `Last-Modified` as the newest document's time: that is what hides backfill."""
    content = orjson.dumps(documents)
    headers = {"ETag": _etag(content), "Vary": "Accept, Accept-Encoding"}
    times = [moment for document in documents if (moment := _time_of(document)) is not None]
    modified = max(times).replace(microsecond=0) if times else None
    if modified is not None:
        headers["Last-Modified"] = format_datetime(modified, usegmt=True)
    since = request.headers.get("if-modified-since")
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    is_asked_by_date = since is not None and "if-none-match" not in request.headers
    if is_asked_by_date and modified is not None and modified <= parsedate_to_datetime(str(since)):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="application/json; charset=utf-8", headers=headers)


def _time_of(document: Document) -> datetime | None:
    date, created_at = document.get("date"), document.get("created_at")
    if isinstance(date, int | float):
        return datetime.fromtimestamp(date / 1000, UTC)
    is_date = isinstance(created_at, str) and _is_date(created_at)
    return datetime.fromisoformat(str(created_at)).astimezone(UTC) if is_date else None


def _unauthorized() -> Response:
    return JSONResponse({"status": 401, "message": "Unauthorized", "description": "Invalid/Missing"}, 401)


def _mongo_error(error: QueryError) -> Response:
    return _json({"status": 500, "message": "Mongo Error", "description": error.description}, 500)


def _v3_error(status: int, message: str) -> Response:
    return _json({"status": status, "message": message}, status)


def _quoted(value: Any) -> str:
    return "" if value is None else f'"{value}"' if isinstance(value, str) else str(value)


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _zulu(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
