"""Python's garbage collector in processes that import a million objects, which stay until the end.

It looks through all of them again and again, which took a fifth of the CPU time of a tick without news.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Python's own are 700, 10 and 10.
_THRESHOLDS = (20_000, 20, 20)


def collect_seldom() -> None:
    """Look for garbage after more new objects than Python does by itself; for the beginning of a process."""
    gc.set_threshold(*_THRESHOLDS)


@contextmanager
def kept_from_collection() -> Iterator[None]:
    """Keep what is made meanwhile out of later collections, until the next time: for what stays until the end."""
    was_enabled = gc.isenabled()
    # What was kept before and is not needed any more is collected.
    gc.unfreeze()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
