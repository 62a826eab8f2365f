"""Superset, closed by default. Everything that differs from place to place comes from the environment.

`bring_up.py` lists the variables. What is set here and is Superset's default already is set so that it stays.
"""

import hmac
import os
from typing import Any

from flask import Flask, redirect, request
from flask_appbuilder.exceptions import PasswordComplexityValidationError
from sqlalchemy.engine.url import URL, make_url
from superset.security import SupersetSecurityManager
from werkzeug import Response

# --- Secrets and databases ------------------------------------------------------------------------

# `bring_up.py` refuses a short one.
SECRET_KEY = os.environ["SUPERSET_SECRET_KEY"]


def _derived_secret(purpose: str) -> str:
    """One more secret, the same in every process; Superset's defaults for these are in its public source."""
    return hmac.new(SECRET_KEY.encode(), purpose.encode(), "sha256").hexdigest()


GUEST_TOKEN_JWT_SECRET = _derived_secret("guest token")
GLOBAL_ASYNC_QUERIES_JWT_SECRET = _derived_secret("async queries")

SQLALCHEMY_DATABASE_URI = os.environ["SUPERSET_DATABASE_URL"]
SQLALCHEMY_ENGINE_OPTIONS = {"pool_pre_ping": True}

# The files under version control name the marts by these; where they are, and the password, is said here.
_MARTS_HOST = "marts"
_MARTS_USER = "bi_reader"
_MARTS = make_url(os.environ["SUPERSET_MARTS_URL"])


def _is_marts(url: URL) -> bool:
    return bool(url.host == _MARTS_HOST and url.username == _MARTS_USER)


def _password(url: URL) -> str | None:
    """The password of the marts; with this in place Superset keeps none in its own database."""
    return os.environ["BI_READER_PASSWORD"] if _is_marts(url) else None


def _address(url: URL, parameters: dict[str, Any], *_: object) -> tuple[URL, dict[str, Any]]:
    """Where the marts are."""
    if not _is_marts(url):
        return url, parameters
    found = url.set(host=_MARTS.host, port=_MARTS.port, database=_MARTS.database, query=dict(_MARTS.query))
    arguments = {"connect_timeout": 10, "application_name": "nightscout-lakehouse-superset"}
    return found, {**parameters, "connect_args": {**parameters.get("connect_args", {}), **arguments}}


SQLALCHEMY_CUSTOM_PASSWORD_STORE = _password
DB_CONNECTION_MUTATOR = _address
PREVENT_UNSAFE_DB_CONNECTIONS = True
DATASET_IMPORT_ALLOWED_DATA_URLS: list[str] = []
ALLOWED_EXTENSIONS: set[str] = set()

# --- Who gets in ----------------------------------------------------------------------------------

PUBLIC_ROLE_LIKE = None
AUTH_USER_REGISTRATION = False
FAB_API_SWAGGER_UI = False
SHORTEST_PASSWORD = 12


def _check_password(password: str) -> None:
    if len(password) < SHORTEST_PASSWORD:
        raise PasswordComplexityValidationError(f"A password needs at least {SHORTEST_PASSWORD} characters.")


FAB_PASSWORD_COMPLEXITY_ENABLED = True
FAB_PASSWORD_COMPLEXITY_VALIDATOR = _check_password
ENABLE_CORS = False
WTF_CSRF_ENABLED = True

_IS_HTTPS = os.environ.get("SUPERSET_HTTPS", "false").lower() == "true"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Strict"
SESSION_COOKIE_SECURE = _IS_HTTPS
GLOBAL_ASYNC_QUERIES_JWT_COOKIE_SAMESITE = "Strict"
GLOBAL_ASYNC_QUERIES_JWT_COOKIE_SECURE = _IS_HTTPS
# A proxy that speaks https stands before it then, and says who the visitor is.
ENABLE_PROXY_FIX = _IS_HTTPS

RATELIMIT_ENABLED = True
RATELIMIT_APPLICATION = "100 per second"
RATELIMIT_STORAGE_URI = os.environ.get("SUPERSET_RATELIMIT_STORAGE_URI", "memory://")
_LOGIN_LIMIT = "5 per minute;60 per hour"
AUTH_RATE_LIMITED = True
AUTH_RATE_LIMIT = _LOGIN_LIMIT


def _limit_logins(app: Flask) -> None:
    """Limit the two ways to log in; Superset 6.1 puts AUTH_RATE_LIMIT on a page that takes no password."""
    from superset.extensions import appbuilder

    for name in ("AuthDBView", "SecurityApi"):
        appbuilder.sm.limiter.limit(_LOGIN_LIMIT, methods=["POST"])(app.blueprints[name])


class SecurityManager(SupersetSecurityManager):  # type: ignore[misc]
    """Superset's own, without the page on which visitors ask for an account."""

    register_superset_registeruser_view = False


CUSTOM_SECURITY_MANAGER = SecurityManager

# --- What people see first ------------------------------------------------------------------------

HOME = "/superset/dashboard/glucose-monitoring/"


def _open_the_dashboard() -> Response | None:
    """Whoever opens the address or has just logged in is here for the dashboard."""
    return redirect(HOME) if request.path in ("/", "/superset/welcome/") else None


def _prepare_app(app: Flask) -> None:
    _limit_logins(app)
    app.before_request(_open_the_dashboard)


FLASK_APP_MUTATOR = _prepare_app

# --- What a page may do ---------------------------------------------------------------------------

# Nothing is loaded from or sent to another host. That also blocks the tracking pixel in Superset's pages.
TALISMAN_ENABLED = True
TALISMAN_CONFIG = {
    "content_security_policy": {
        "default-src": ["'self'"],
        "script-src": ["'self'", "'strict-dynamic'"],
        "style-src": ["'self'", "'unsafe-inline'"],
        "img-src": ["'self'", "blob:", "data:"],
        "font-src": ["'self'", "data:"],
        "connect-src": ["'self'"],
        "worker-src": ["'self'", "blob:"],
        "object-src": ["'none'"],
        "base-uri": ["'self'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
    },
    "content_security_policy_nonce_in": ["script-src"],
    "frame_options": "DENY",
    "referrer_policy": "same-origin",
    "force_https": False,
    "session_cookie_secure": _IS_HTTPS,
    "session_cookie_samesite": "Strict",
    "strict_transport_security": _IS_HTTPS,
}
TALISMAN_DEV_CONFIG = TALISMAN_CONFIG
THEME_FONT_URL_ALLOWED_DOMAINS: list[str] = []
HTML_SANITIZATION = True

# --- What runs ------------------------------------------------------------------------------------

FEATURE_FLAGS = {
    "ALERT_REPORTS": False,
    "EMBEDDED_SUPERSET": False,
    "ENABLE_TEMPLATE_PROCESSING": False,
    "THUMBNAILS": False,
    # All charts of a page are there when it is printed.
    "DASHBOARD_VIRTUALIZATION": False,
}
# No worker: every query is quick.
CELERY_CONFIG = None
# Ninety days of a sensor that sends every minute: a line that leaves readings out may leave out a low.
SQL_MAX_ROW = 200_000
LOG_LEVEL = "WARNING"

# --- How it looks ---------------------------------------------------------------------------------

APP_NAME = "Nightscout Lakehouse"
