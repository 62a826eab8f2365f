"""The way out of the outbox: to all targets at the same time, to each in order."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from datetime import datetime, timedelta
from itertools import groupby

from filelock import FileLock, Timeout

from nightscout_lakehouse.lib.alerts.engine import Kind
from nightscout_lakehouse.lib.alerts.store import AlertStore
from nightscout_lakehouse.lib.alerts.targets import Target, send
from nightscout_lakehouse.lib.alerts.wording import Text, delayed

logger = logging.getLogger(__name__)

Send = Callable[[Target, Text, Kind], str]

_DELIVERY_SECONDS = 20
# As long as another process may take: what it has begun, and its slowest service.
_WAIT_SECONDS = 35
_LATE = timedelta(minutes=5)


def deliver(
    store: AlertStore, targets: Sequence[Target], *, now: Callable[[], datetime], deliver_by: Send = send
) -> tuple[int, tuple[str, ...]]:
    """Send what is due, to all targets at the same time, to each in order.

    A target that refuses one message is not asked again at this look: the others wait for the next. One process
    delivers at a time, or two would send the same.

    Returns:
        How many deliveries went through, and the targets to which one did not, with the reason.
    """
    lock = FileLock(store.folder / "delivery.lock", thread_local=False)
    try:
        lock.acquire(timeout=_WAIT_SECONDS)
    except Timeout:
        # It stays in the outbox; the next look delivers it.
        return 0, ()
    try:
        return _deliver(store, targets, now, deliver_by)
    finally:
        lock.release()


def _deliver(
    store: AlertStore, targets: Sequence[Target], now: Callable[[], datetime], deliver_by: Send
) -> tuple[int, tuple[str, ...]]:
    by_name = {target.name: target for target in targets}
    due = sorted(store.due(targets, now()), key=lambda each: (each.target, each.message_id))
    deadline = time.monotonic() + _DELIVERY_SECONDS
    queues = {name: list(group) for name, group in groupby(due, key=lambda each: each.target)}
    delivered, undelivered = 0, list[str]()
    if not queues:
        return 0, ()
    with ThreadPoolExecutor(max_workers=len(queues), thread_name_prefix="alert") as pool:

        def start(name: str) -> Future[str]:
            each = queues[name][0]
            late = now() - each.created_at
            text = delayed(each.text, late) if late >= _LATE else each.text
            return pool.submit(deliver_by, by_name[name], text, each.kind)

        under_way = {start(name): name for name in queues}
        while under_way:
            future = next(as_completed(under_way))
            name = under_way.pop(future)
            error = future.result()
            # At once, so that no more than this one delivery can come twice.
            store.settle(queues[name].pop(0), error, now())
            if error:
                undelivered.append(f"{name}: {error}")
                logger.error("alert not delivered to %s: %s", name, error)
                continue
            delivered += 1
            if queues[name] and time.monotonic() < deadline:
                under_way[start(name)] = name
    return delivered, tuple(undelivered)
