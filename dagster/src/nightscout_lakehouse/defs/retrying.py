"""A step that failed by what may pass is tried again; every other failure stands."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import dagster as dg

from nightscout_lakehouse.instance import BY_HAND_TAG
from nightscout_lakehouse.lib.errors import LakehouseError

P = ParamSpec("P")
T = TypeVar("T")

MOST_RETRIES = 3
FIRST_WAIT_SECONDS = 30.0


def retries_what_may_pass(compute: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
    """Try a step again after 30, 60 and 120 seconds where its failure may pass: a network, a database, a lock.

    A failed check, a refused login or a wrong setting is as wrong in a minute. Whoever runs `lakehouse run` by hand
    sees the failure at once.
    """

    @wraps(compute)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        try:
            yield from compute(*args, **kwargs)
        except (LakehouseError, dg.Failure) as error:
            context = dg.AssetExecutionContext.get()
            if not may_pass(error) or BY_HAND_TAG in context.run.tags:
                raise
            wait = FIRST_WAIT_SECONDS * 2**context.op_execution_context.retry_number
            context.log.warning(f"Tried again in {wait:.0f} s, at most {MOST_RETRIES} times: {_words(error)}")
            raise dg.RetryRequested(max_retries=MOST_RETRIES, seconds_to_wait=wait) from error

    return wrapped


def may_pass(error: LakehouseError | dg.Failure) -> bool:
    """Whether the next attempt may go better."""
    return error.is_transient if isinstance(error, LakehouseError) else error.allow_retries


def _words(error: Any) -> str:
    return str(error.description if isinstance(error, dg.Failure) else error)
