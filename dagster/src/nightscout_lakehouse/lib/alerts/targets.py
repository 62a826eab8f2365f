"""Where alerts go: the services that `apprise` knows, each named by a URL that is a secret as a whole.

A URL holds tokens and passwords in any of its parts. So a target is known by its place in the list and its scheme, and
nothing that `apprise` logs is passed on: why a delivery failed is said in words of our own.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import SecretStr

from nightscout_lakehouse.lib.alerts.engine import Kind
from nightscout_lakehouse.lib.alerts.wording import Text
from nightscout_lakehouse.lib.errors import ConfigurationError
from nightscout_lakehouse.lib.settings import Settings

if TYPE_CHECKING:
    from apprise import Apprise

Audience = Literal["first", "escalation"]

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
# URLs stand apart by spaces or lines, or by a comma before the next one: a URL may hold commas itself.
_BETWEEN_URLS = re.compile(r"\s+|[,;]\s*(?=[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
_SEND_SECONDS = 10
_SHORTEST_SECRET = 6
_REASONS = (
    (re.compile(r"error=(\d{3})\b"), "the service answers with HTTP {}"),
    (
        re.compile(r"connection error|socket exception", re.IGNORECASE),
        "the service cannot be reached, or refuses the login",
    ),
)


@dataclass(frozen=True)
class Target:
    """One service that is told.

    Attributes:
        name: How people and the outbox call it: its list, its place there, its scheme. No part of the URL else.
        audience: Whether it is told at once, or when nobody acknowledges.
        url: For `apprise`.
    """

    name: str
    audience: Audience
    url: SecretStr


def load_targets(settings: Settings) -> list[Target]:
    """The targets of both lists, in their order.

    Raises:
        ConfigurationError: A list holds something that is no URL (names the list and the place, shows nothing of it),
            or there is a second list alone.
    """
    first = _targets("LAKEHOUSE_ALERT_URLS", "first", settings.alert_urls)
    second = _targets("LAKEHOUSE_ALERT_ESCALATION_URLS", "escalation", settings.alert_escalation_urls)
    if second and not first:
        raise ConfigurationError(
            "LAKEHOUSE_ALERT_ESCALATION_URLS is set and LAKEHOUSE_ALERT_URLS is not.",
            "Name who is told first; the second list is for when nobody acknowledges.",
        )
    return [*first, *second]


def check_targets(targets: Iterable[Target]) -> None:
    """Have `apprise` read every URL.

    Raises:
        ConfigurationError: It does not take one.
    """
    for target in targets:
        if _service(target) is None:
            raise _not_taken(target)


def send(target: Target, text: Text, kind: Kind) -> str:
    """Send one message to one target; never raises.

    Returns:
        Empty if the service took it, else why not, without any part of the URL.
    """
    from apprise import NotifyFormat, NotifyType

    service = _service(target)
    if service is None:
        return str(_not_taken(target))
    notify_type = {Kind.RECOVERED: NotifyType.SUCCESS, Kind.REMINDER: NotifyType.WARNING}.get(kind, NotifyType.FAILURE)
    try:
        result = service.notify(
            body=text.body,
            title=text.title,
            notify_type=notify_type,
            body_format=NotifyFormat.TEXT,
            timeout=_SEND_SECONDS,
        )
    except Exception as error:
        # Over a hundred plugins, written by many: none of them may stop an alert to the next target.
        return f"the service failed ({type(error).__name__})"
    if result:
        return ""
    if result.status.name == "TIMEOUT":
        return f"the service did not answer within {_SEND_SECONDS} s"
    return _reason(" ".join(entry.message for entry in result.logs()))


def targets_of(kind: Kind, targets: Iterable[Target], *, is_for_escalation_too: bool) -> tuple[str, ...]:
    """Names of the targets that an event goes to."""
    first = tuple(target.name for target in targets if target.audience == "first")
    second = tuple(target.name for target in targets if target.audience == "escalation")
    if kind is Kind.ESCALATED:
        return second
    return (*first, *second) if is_for_escalation_too else first


def secret_parts(url: SecretStr) -> list[str]:
    """What must not be shown of a list of URLs: each URL, and every part of it that may be a secret."""
    found = set[str]()
    for each in _split(url):
        parts = urlsplit(each)
        pieces = [parts.netloc, parts.path.strip("/"), *parts.path.split("/"), *re.split(r"[@:/]", parts.netloc)]
        pieces += [value for _, value in parse_qsl(parts.query)]
        found |= {each, *(piece for piece in (*pieces, *map(unquote, pieces)) if len(piece) >= _SHORTEST_SECRET)}
    return sorted(found, key=len, reverse=True)


def _targets(variable: str, audience: Audience, urls: SecretStr) -> list[Target]:
    targets = []
    for number, url in enumerate(_split(urls), start=1):
        match = _SCHEME.match(url)
        if match is None:
            raise ConfigurationError(
                f"{variable}: number {number} is no URL.",
                "Write each as scheme://…, apart by spaces; see docs/guide/14-alerts.md.",
            )
        targets.append(Target(f"{audience} {number} ({match[1].lower()})", audience, SecretStr(url)))
    return targets


def _split(urls: SecretStr) -> list[str]:
    return [url for url in _BETWEEN_URLS.split(urls.get_secret_value().strip()) if url]


def _service(target: Target) -> "Apprise | None":
    """The service of a target, or None where `apprise` does not take the URL; importing it takes half a second."""
    import apprise

    # Its messages show parts of URLs, and so do those of what it sends with.
    for name in ("apprise", "urllib3"):
        logging.getLogger(name).propagate = False
    # A redirect would carry the secret to another host.
    asset = apprise.AppriseAsset(app_id="Nightscout Lakehouse", async_mode=False, http_redirects=False)
    service = apprise.Apprise(asset=asset)
    return service if service.add(target.url.get_secret_value()) else None


def _not_taken(target: Target) -> ConfigurationError:
    return ConfigurationError(
        f"The alert URL {target.name} is none that apprise takes.",
        "Compare it with https://github.com/caronc/apprise/wiki; a password with special characters has to be escaped.",
    )


def _reason(log: str) -> str:
    for pattern, words in _REASONS:
        if match := pattern.search(log):
            return words.format(*match.groups())
    return "the service did not take it"
