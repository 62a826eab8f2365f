"""Where events go: always to a file, and besides to where the OpenLineage client is configured to send them.

The client's own configuration holds: `OPENLINEAGE_URL` with `OPENLINEAGE_API_KEY`, `openlineage.yml`, the variables
`OPENLINEAGE__…`, `OPENLINEAGE_DISABLED`. Whatever transport that names is given its events from the outbox.
"""

import json
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from nightscout_lakehouse.lib.lineage.journal import Journal
from nightscout_lakehouse.lib.lineage.outbox import CLOSE_SECONDS, Outbox, Send
from nightscout_lakehouse.lib.redaction import Redactor
from nightscout_lakehouse.lib.settings import Settings

if TYPE_CHECKING:
    from openlineage.client.event_v2 import RunEvent

logger = logging.getLogger(__name__)

# A server that takes longer counts as down.
HTTP_TIMEOUT_SECONDS = 3.0


class Emitter:
    """Emits events; it never raises, since no run may fail for its lineage.

    Args:
        settings: Where to write, where to send.
        redactor: Blacks out the secrets of the moment; asked for with each event, since the first run makes some.
    """

    def __init__(self, settings: Settings, redactor: Callable[[], Redactor]) -> None:
        from openlineage.client import OpenLineageClient
        from openlineage.client.transport.transport import Transport

        settings.lineage_dir.mkdir(parents=True, exist_ok=True)
        self._journal = journal = Journal(settings.lineage_dir)
        self._outboxes = outboxes = list[Outbox]()

        class Local(Transport):
            kind = "lakehouse"

            def emit(self, event: Any) -> None:
                from openlineage.client.serde import Serde

                line = json.dumps(redactor().clean_value(Serde.to_dict(event)), separators=(",", ":"))
                journal.append(line)
                for outbox in outboxes:
                    outbox.put(line)

        # For what the client itself adds and leaves out by its configuration: tags, filters.
        self._client = OpenLineageClient(transport=Local())
        try:
            self._outboxes += _outboxes(settings, self._client.config.transport)
        except Exception as error:
            # The client's configuration names any class, which raises what it likes.
            logger.warning(
                "The OpenLineage transport cannot be set up: %s. Events are only written to a file.",
                redactor().clean(str(error)),
            )

    def begin_run(self) -> None:
        """A run begins, and no other goes on: the time for a new file, if it is due."""
        self._journal.rotate()

    def emit(self, event: "RunEvent") -> None:
        """Write an event, and have it sent."""
        try:
            self._client.emit(event)
        except Exception:
            # A full disk, or a filter of the client's configuration: no run fails for it.
            logger.warning("A lineage event of %s was lost.", event.job.name, exc_info=True)

    def close(self) -> None:
        """Wait a moment for what is still to be sent."""
        deadline = time.monotonic() + CLOSE_SECONDS
        for outbox in self._outboxes:
            if not outbox.close(max(0.0, deadline - time.monotonic())):
                logger.warning("%d lineage events wait to be sent by the next run.", outbox.count())


def _outboxes(settings: Settings, configured: dict[str, Any] | None) -> list[Outbox]:
    """One for each transport that the client's configuration names, besides the file."""
    from openlineage.client.transport import get_default_factory
    from openlineage.client.transport.composite import CompositeTransport

    if configured and configured.get("type"):
        transport = get_default_factory().create(configured)
        # Each has its own: where one fails, the other's events are not sent again.
        parts = transport.transports if isinstance(transport, CompositeTransport) else [transport]
        names = [part.name or f"outbox{number}" for number, part in enumerate(parts, start=1)]
        return [
            Outbox(settings.lineage_dir, name, cast(Send, part.emit)) for name, part in zip(names, parts, strict=True)
        ]
    if not settings.openlineage_url.get_secret_value():
        return []
    http: dict[str, Any] = {
        "type": "http",
        "url": settings.openlineage_url.get_secret_value(),
        "endpoint": settings.openlineage_endpoint,
        "timeout": HTTP_TIMEOUT_SECONDS,
        # The outbox tries again.
        "retry": {"total": 0, "connect": 0, "read": 0},
    }
    if key := settings.openlineage_api_key.get_secret_value():
        http["auth"] = {"type": "api_key", "apiKey": key}
    return [Outbox(settings.lineage_dir, "outbox", cast(Send, get_default_factory().create(http).emit))]
