"""What a Nightscout 15.0.7 server does, fact by fact: the table that the demo server is held against.

Observed on a running server and read in its source. Times are relative: `$now` and `$now-Nd` stand for epoch
milliseconds, `$day-N` for an ISO date that many days ago. The documents behind it are made by
`test_nightscout_contract.py`: readings every 5 minutes over the last 10 days, and some odd ones.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Fact:
    """One request and what must hold for its answer.

    Attributes:
        id: Names the fact.
        says: The fact in words.
        path: Path and query.
        status: Status code.
        count: Number of documents in the answer, if it is a list.
        body: The whole body, where it is fixed.
        has: Fields that every document of the answer has.
        lacks: Fields that none has.
        headers: Request headers.
        answer_headers: Response headers that must be there.
        method: HTTP method.
        server: Which set-up: `open` (readable by all) or `closed` (`AUTH_DEFAULT_ROLES=denied`).
    """

    id: str
    says: str
    path: str
    status: int = 200
    count: int | None = None
    body: Any = None
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)
    answer_headers: tuple[str, ...] = ()
    method: str = "GET"
    server: str = "open"


_ENTRIES = "/api/v1/entries.json"
_SGV = "/api/v1/entries/sgv.json"
_DAY = "find[date][$gte]=$now-8d&find[date][$lt]=$now-7d"
_UNAUTHORIZED = {"status": 401, "message": "Unauthorized", "description": "Invalid/Missing"}
_MONGO = {"status": 500, "message": "Mongo Error", "description": {}}

FACTS = [
    Fact("default-count", "Ten documents unless a count is given.", _ENTRIES, count=10),
    Fact("mills-from-cache", "`mills` is there when the answer comes from the memory cache.", _ENTRIES, has=("mills",)),
    Fact(
        "no-mills-with-find", "`mills` is not there with a condition on the date.", f"{_SGV}?{_DAY}", lacks=("mills",)
    ),
    Fact(
        "no-mills-beyond-cache",
        "Nor when more is asked for than the cache of two days holds.",
        f"{_SGV}?count=100000",
        lacks=("mills",),
    ),
    Fact(
        "four-days",
        "Without a condition on the time the server answers with four days only.",
        f"{_SGV}?count=100000",
        count=4 * 288,
    ),
    Fact(
        "four-days-with-other-find",
        "A condition on another field keeps the four days.",
        f"{_SGV}?find[device]=sensor&count=100000",
        count=4 * 288,
    ),
    Fact("count-with-find", "The default count also holds with a condition.", f"{_SGV}?{_DAY}", count=10),
    Fact("window", "A condition on the date lifts the four days.", f"{_SGV}?{_DAY}&count=1000", count=288),
    Fact("no-maximum", "There is no upper bound on the count.", f"{_SGV}?find[date][$gte]=0&count=100000", count=2880),
    Fact(
        "zero-is-all-with-date",
        "`count=0` is everything with a condition on the date.",
        f"{_SGV}?{_DAY}&count=0",
        count=288,
    ),
    Fact("zero-is-none-without", "`count=0` is nothing without one.", f"{_SGV}?count=0", count=0),
    Fact("negative-is-none", "So is a negative count.", f"{_SGV}?count=-5", count=0),
    Fact("count-garbage", "A count that is no number is an error of the database.", f"{_SGV}?count=abc", status=500),
    Fact(
        "iso-date",
        "A bound on `date` is read up to the first character that is no digit: an ISO date is a year.",
        f"{_SGV}?find[date][$gte]=$day-8&find[date][$lt]=$day-7&count=100",
        count=0,
    ),
    Fact(
        "iso-date-open",
        "So an ISO lower bound alone finds everything.",
        f"{_SGV}?find[date][$gte]=$day-1&count=100000",
        count=2880,
    ),
    Fact(
        "date-garbage",
        "A bound that begins with no digit is an error of the database.",
        f"{_ENTRIES}?find[date][$gte]=abc",
        status=500,
        body=_MONGO,
    ),
    Fact("unknown-operator", "So is an unknown operator.", f"{_ENTRIES}?find[date][$foo]=1", status=500),
    Fact("exists", "And `$exists` on the date.", f"{_ENTRIES}?find[date][$exists]=true", status=500),
    Fact(
        "unknown-id",
        "An unknown id is a 500.",
        "/api/v1/entries/000000000000000000000000.json",
        status=500,
        body={"status": 500, "message": "Mongo Error", "description": "No such id: '000000000000000000000000'"},
    ),
    Fact(
        "date-string",
        "`dateString` is compared as text, in UTC with a Z.",
        f"{_SGV}?find[dateString][$gte]=$day-6&find[dateString][$lt]=$day-5&count=1000",
        count=288,
    ),
    Fact(
        "text-date-hidden",
        "A date stored as text is in no window of numbers.",
        f"{_ENTRIES}?find[date][$gte]=0&find[device]=text-date&count=10",
        count=0,
    ),
    Fact(
        "text-date-by-text",
        "It is found by its `dateString`.",
        f"{_ENTRIES}?find[dateString][$gte]=2000&find[device]=text-date&count=10",
        count=1,
    ),
    Fact(
        "untyped-all",
        "Documents without a type are in `/entries` with a condition.",
        f"{_ENTRIES}?find[date][$gte]=0&find[device]=no-type",
        count=1,
    ),
    Fact(
        "untyped-sgv",
        "They are not in `/entries/sgv`, which asks for the type.",
        f"{_SGV}?find[date][$gte]=0&find[device]=no-type",
        count=0,
    ),
    Fact(
        "type-overridden",
        "`/entries/sgv` overrides a condition on the type.",
        f"{_SGV}?find[type]=mbg&count=5",
        count=5,
        has=("sgv",),
    ),
    Fact(
        "mbg",
        "Finger-sticks have their own type.",
        "/api/v1/entries/mbg.json?find[date][$gte]=0",
        count=1,
        has=("mbg",),
    ),
    Fact(
        "soft-deleted",
        "What v3 deleted softly is still there in v1.",
        f"{_ENTRIES}?find[date][$gte]=0&find[device]=deleted",
        count=1,
        has=("isValid",),
    ),
    Fact(
        "etag",
        "Lists carry an ETag and the time of the newest reading.",
        f"{_SGV}?count=3",
        answer_headers=("etag", "last-modified"),
    ),
    Fact(
        "modified-since",
        "`If-Modified-Since` goes by the time of the newest reading, so it hides backfill.",
        f"{_SGV}?{_DAY}&count=100",
        status=304,
        headers={"If-Modified-Since": "Wed, 01 Jan 2200 00:00:00 GMT"},
    ),
    Fact("echo", "The server shows the window that it adds.", "/api/v1/echo/entries/sgv.json"),
    Fact("status", "status.json tells version and units.", "/api/v1/status.json"),
    Fact(
        "profile",
        "profile.json is a list, newest first.",
        "/api/v1/profile.json",
        count=1,
        has=("store", "defaultProfile"),
    ),
    Fact(
        "treatments",
        "Treatments: 100 by default, of the last four days; insulin and carbohydrates are always there.",
        "/api/v1/treatments.json",
        count=100,
        has=("carbs", "insulin"),
        answer_headers=("etag", "last-modified"),
    ),
    Fact(
        "treatments-with-find",
        "With a condition 1000 by default.",
        "/api/v1/treatments.json?find[created_at][$gte]=$day-30",
        count=1000,
    ),
    Fact(
        "treatments-four-days",
        "Without a condition on the time the server answers with four days only.",
        "/api/v1/treatments.json?find[eventType]=Exercise&count=10000",
        count=4,
    ),
    Fact(
        "treatments-no-maximum",
        "There is no upper bound on the count.",
        "/api/v1/treatments.json?find[created_at][$gte]=$day-30&count=100000",
        count=1218,
    ),
    Fact(
        "treatments-window",
        "Bounds are rewritten to UTC and compared as text.",
        "/api/v1/treatments.json?find[created_at][$gte]=$day-6&find[created_at][$lt]=$day-5&count=1000",
        count=123,
    ),
    Fact(
        "treatments-zoned-bound",
        "Also bounds in another zone.",
        "/api/v1/treatments.json?find[created_at][$gte]=2015-06-06T23:00:00-05:00&find[created_at][$lt]=2015-07-01",
        count=1,
        has=("notes",),
    ),
    Fact(
        "treatments-other-text",
        "Text that is no date sorts below all dates, and is found without a lower bound.",
        "/api/v1/treatments.json?find[created_at][$lt]=2000-01-01",
        count=1,
    ),
    Fact(
        "treatments-garbage",
        "A garbage bound on `created_at` answers 200 with null.",
        "/api/v1/treatments.json?find[created_at][$gte]=garbage",
        body="null",
    ),
    Fact("device-status", "devicestatus: 10 by default.", "/api/v1/devicestatus.json", count=10, has=("mills",)),
    Fact(
        "device-status-four-days",
        "Four days without a condition on the time.",
        "/api/v1/devicestatus.json?count=10000",
        count=4 * 24,
    ),
    Fact(
        "device-status-window",
        "A condition lifts them.",
        "/api/v1/devicestatus.json?find[created_at][$gte]=$day-30&count=10000",
        count=240,
    ),
    Fact(
        "profile-however-old",
        "profile.json has no window of time.",
        "/api/v1/profile.json?count=1000",
        count=1,
    ),
    Fact(
        "profiles-window",
        "profiles.json has one on `startDate`.",
        "/api/v1/profiles.json?count=1000",
        count=0,
    ),
    Fact(
        "closed-treatments",
        "A closed server refuses treatments in the same way.",
        "/api/v1/treatments.json",
        status=401,
        body=_UNAUTHORIZED,
        server="closed",
    ),
    Fact("versions-open", "/api/versions is open on closed servers.", "/api/versions", count=3, server="closed"),
    Fact(
        "closed-entries",
        "A closed server refuses with this body.",
        f"{_ENTRIES}?count=2",
        status=401,
        body=_UNAUTHORIZED,
        server="closed",
    ),
    Fact(
        "closed-status",
        "status.json is closed too.",
        "/api/v1/status.json",
        status=401,
        body=_UNAUTHORIZED,
        server="closed",
    ),
    Fact(
        "token-query",
        "A token in the query opens it.",
        f"{_ENTRIES}?count=2&token=reader-0123456789abcdef",
        count=2,
        server="closed",
    ),
    Fact(
        "token-header",
        "A token in the header `api-secret` does too.",
        f"{_ENTRIES}?count=2",
        count=2,
        headers={"api-secret": "reader-0123456789abcdef"},
        server="closed",
    ),
    Fact(
        "token-header-prefixed",
        "Also written as `token=…`.",
        f"{_ENTRIES}?count=2",
        count=2,
        headers={"api-secret": "token=reader-0123456789abcdef"},
        server="closed",
    ),
    Fact(
        "secret-sha1",
        "The API secret is sent as its SHA-1.",
        f"{_ENTRIES}?count=2",
        count=2,
        headers={"api-secret": "$sha1"},
        server="closed",
    ),
    Fact(
        "secret-sha512",
        "Or as its SHA-512.",
        f"{_ENTRIES}?count=2",
        count=2,
        headers={"api-secret": "$sha512"},
        server="closed",
    ),
    Fact(
        "secret-plain",
        "Not in plain text.",
        f"{_ENTRIES}?count=2",
        status=401,
        headers={"api-secret": "a secret of twelve"},
        server="closed",
    ),
    Fact(
        "bearer-raw",
        "A raw token is no bearer token.",
        f"{_ENTRIES}?count=2",
        status=401,
        headers={"Authorization": "Bearer reader-0123456789abcdef"},
        server="closed",
    ),
    Fact(
        "bearer-jwt",
        "A JWT is.",
        f"{_ENTRIES}?count=2",
        count=2,
        headers={"Authorization": "Bearer $jwt"},
        server="closed",
    ),
    Fact(
        "role-denied",
        "A token whose role may not read is refused in the same way.",
        f"{_ENTRIES}?token=nobody-0123456789abcdef",
        status=401,
        body=_UNAUTHORIZED,
        server="closed",
    ),
    Fact(
        "unknown-token",
        "An unknown token in the query counts as none.",
        f"{_ENTRIES}?token=wrong-0000000000000000",
        status=401,
        body=_UNAUTHORIZED,
        server="closed",
    ),
    Fact(
        "login-unknown",
        "An unknown token gets no JWT.",
        "/api/v2/authorization/request/wrong-0000000000000000",
        status=401,
        body=_UNAUTHORIZED,
        server="closed",
    ),
    Fact(
        "read-only-post",
        "A token that may only read may not write.",
        "/api/v1/entries.json?token=reader-0123456789abcdef",
        status=401,
        body=_UNAUTHORIZED,
        method="POST",
        server="closed",
    ),
    Fact(
        "verify-auth",
        "verifyauth says what the caller may do.",
        "/api/v1/verifyauth?token=reader-0123456789abcdef",
        server="closed",
    ),
    Fact("v3-version", "The version of v3 is open.", "/api/v3/version", server="closed"),
    Fact("v3-closed", "v3 wants a JWT, even where everybody may read.", "/api/v3/entries", status=401),
    Fact(
        "v3-limit-high",
        "v3 gives at most 1000 at once.",
        "/api/v3/entries?limit=1001",
        status=400,
        headers={"Authorization": "Bearer $jwt"},
    ),
    Fact(
        "v3-limit-zero",
        "And at least one.",
        "/api/v3/entries?limit=0",
        status=400,
        headers={"Authorization": "Bearer $jwt"},
    ),
    Fact(
        "v3-limit-garbage",
        "A limit is a number.",
        "/api/v3/entries?limit=abc",
        status=400,
        headers={"Authorization": "Bearer $jwt"},
    ),
    Fact(
        "v3-operator",
        "An unknown operator is refused.",
        "/api/v3/entries?date$foo=1",
        status=400,
        headers={"Authorization": "Bearer $jwt"},
    ),
    Fact(
        "v3-sort-both",
        "`sort` and `sort$desc` exclude each other.",
        "/api/v3/entries?sort=date&sort$desc=date",
        status=400,
        headers={"Authorization": "Bearer $jwt"},
    ),
]
