"""Documents that were refused: what they are, why, what to do about it, and judging them anew."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb

from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.ingestion import write_batch
from nightscout_lakehouse.lib.lake import Lake, last_batch, sql_text
from nightscout_lakehouse.lib.nightscout_client import Document
from nightscout_lakehouse.lib.nightscout_collections import COLLECTIONS, QUARANTINED, Collection
from nightscout_lakehouse.lib.processing import pending_batches, process_sites
from nightscout_lakehouse.lib.settings import Settings
from nightscout_lakehouse.lib.sites import Site
from nightscout_lakehouse.lib.warehouse import connect_warehouse

# A share of few documents says little.
LEAST_DOCUMENTS = 20
DOCUMENTS_PER_BATCH = 20_000

logger = logging.getLogger(__name__)

_RANGE = "Mend or delete it where it was entered; the next read of its window takes it up."
_NUMBER = "The uploader sends text where a number belongs: update it, or mend the document on the server."
# What to do about a document, by its reason; what the reasons mean is in docs/guide/04-parquet.md.
REMEDIES: dict[str, str] = {
    "sensor_error_code": "Nothing: the sensor had no value. If all are between 2 and 20, the uploader sends mmol/L: "
    "set it to mg/dL and send them again.",
    "glucose_out_of_range": "Nothing, if it is single; many are an uploader that sends another unit or raw counts.",
    "glucose_sentinel": "Nothing: the sensor only said that it was above or below what it measures.",
    "missing_glucose": "Nothing, if it is single; many mean that the uploader has renamed the field.",
    "glucose_not_a_number": _NUMBER,
    "timestamp_in_future": "Set the clock of the uploader, or of this machine. Once the time has come: "
    "`lakehouse quarantine retry --reason timestamp_in_future`.",
    "timestamp_too_old": "The uploader had no clock, as after a restart: delete it on the server.",
    "unreadable_timestamp": "Mend the time on the server; many mean that the uploader has renamed the field.",
    "unknown_type": "Nothing: it is no glucose value. If you need this type, ask for it in an issue.",
    "insulin_not_a_number": _NUMBER,
    "insulin_out_of_range": _RANGE,
    "carbs_not_a_number": _NUMBER,
    "carbs_out_of_range": _RANGE,
    "rate_not_a_number": _NUMBER,
    "rate_out_of_range": _RANGE,
    "duration_not_a_number": _NUMBER,
    "duration_out_of_range": _RANGE,
    "missing_store": "Save the profile again in Nightscout's profile editor.",
    "missing_id": "The server must give every document an `_id`; something stands between it and the lakehouse.",
    "not_a_json_object": "Something other than Nightscout wrote it: delete it on the server.",
}


@dataclass(frozen=True)
class Refused:
    """A document in quarantine; the columns of `stg_nightscout_quarantine`."""

    site: str
    collection: str
    document_id: str
    reason: str
    document: str
    batch: int
    first_seen_at: datetime
    last_seen_at: datetime


@dataclass(frozen=True)
class Choice:
    """Which documents of the quarantine; None is all."""

    site: str | None = None
    reason: str | None = None
    collection: str | None = None


@dataclass(frozen=True)
class Retried:
    """What came of judging a site's documents of a collection anew."""

    site: str
    collection: str
    retried: int
    stored: int
    duplicates: int
    still_refused: int


@dataclass(frozen=True)
class RefusedShare:
    """How many of a site's documents were refused."""

    site: str
    documents: int
    quarantined: int

    @property
    def share_pct(self) -> float:
        """The share in percent."""
        return 100.0 * self.quarantined / self.documents


def count_refused(settings: Settings, choice: Choice) -> list[tuple[str, str, str, int, datetime, datetime]]:
    """Counts by site, collection and reason, with the first and last time; the most frequent first."""
    query = """
    select site, collection, reason, count(*) as documents, min(first_seen_at), max(last_seen_at)
    from refused
    group by site, collection, reason
    order by documents desc, site, collection, reason
    """
    return _rows(settings, choice, query)


def list_refused(settings: Settings, choice: Choice, limit: int) -> list[Refused]:
    """The documents, that which landed last first."""
    query = f"select * from refused order by last_seen_at desc, site, collection, document_id limit {int(limit)}"
    return [Refused(*row) for row in _rows(settings, choice, query)]


def find_refused(settings: Settings, document_id: str) -> list[Refused]:
    """The documents with an id, `id` or `site/id`; several sites may have the same.

    Raises:
        LakehouseError: There is none.
    """
    wanted = sql_text(document_id)
    query = f"select * from refused where document_id = {wanted} or site || '/' || document_id = {wanted} order by all"
    found = [Refused(*row) for row in _rows(settings, Choice(), query)]
    if not found:
        raise LakehouseError(
            f"No document {document_id} is in quarantine.", "`lakehouse quarantine list` shows those that are."
        )
    return found


def pretty(document: str) -> str:
    """A document as indented JSON; as it is where it is none."""
    try:
        content = json.loads(document)
    except ValueError:
        return document
    text = json.dumps(content, indent=2, ensure_ascii=False)
    # Half a character can be shown only as it is written in JSON.
    is_whole = not any("\ud800" <= character <= "\udfff" for character in text)
    return text if is_whole else json.dumps(content, indent=2)


def retry_refused(settings: Settings, lake: Lake, sites: Sequence[Site], choice: Choice) -> list[Retried]:
    """Judge documents of the quarantine anew, by the rules of today and the time of now.

    Each lands again, its text unchanged, in a new batch that is processed at once. In its accounting a document that
    leaves quarantine is stored (or a duplicate, where another one says the same), one that stays is a duplicate.

    Raises:
        LakehouseError: A site is not known, or has batches that are not processed: newer versions may be among them.
    """
    by_name = {site.name: site for site in sites}
    if choice.site is not None and choice.site not in by_name:
        raise LakehouseError(f"No site is named {choice.site}.", f"There are: {', '.join(sorted(by_name)) or 'none'}.")
    reports = []
    for collection in COLLECTIONS:
        if choice.collection not in (None, _short(collection)):
            continue
        concerned = {name for name, of, *_ in count_refused(settings, choice) if of == _short(collection)}
        for name in sorted(concerned - by_name.keys()):
            logger.warning("site %s is not configured any more; its documents stay as they are", name)
        concerned &= by_name.keys()
        waiting = [name for name in sorted(concerned) if pending_batches(lake, name, collection)]
        if waiting:
            raise LakehouseError(
                f"Site {', '.join(waiting)} has batches of {_short(collection)} that are not processed yet.",
                "Run `lakehouse run` first, then retry.",
            )
        for name in sorted(concerned):
            reports.append(_retry_site(settings, lake, by_name[name], collection, choice))
    return reports


def _retry_site(settings: Settings, lake: Lake, site: Site, collection: Collection, choice: Choice) -> Retried:
    of_site = Choice(site.name, choice.reason, _short(collection))
    hashes = "select document_id, document, hash from refused order by last_seen_at, batch, document_id"
    documents = [
        Document(text=text, id=identity, hash=digest, date_ms=None)
        for identity, text, digest in _rows(settings, of_site, hashes, with_hash=True)
    ]
    number = last_batch(lake, site.name, collection) + 1
    now = datetime.now(UTC)
    for start in range(0, len(documents), DOCUMENTS_PER_BATCH):
        # A batch is written oldest last, as a server sends it.
        chunk = documents[start : start + DOCUMENTS_PER_BATCH][::-1]
        write_batch(lake, site.name, number, chunk, now, collection)
        number += 1
    (report,) = process_sites([site], settings, lake, collection)
    landed = {document.id for document in documents}
    after = _rows(settings, Choice(site.name, None, _short(collection)), "select document_id from refused")
    still = sum(identity in landed for (identity,) in after)
    return Retried(
        site=site.name,
        collection=_short(collection),
        retried=len(documents),
        stored=report.stored,
        duplicates=len(documents) - report.stored - still,
        still_refused=still,
    )


def refused_shares(
    warehouse: duckdb.DuckDBPyConnection, collection: Collection, most_pct: float, now: datetime
) -> list[RefusedShare]:
    """Sites of whose documents, processed in the last 24 hours, more than a share was refused.

    Args:
        warehouse: With `ops.batches`.
        collection: Of which collection.
        most_pct: Up to which share it is usual.
        now: The time.
    """
    rows = warehouse.execute(
        """
        select site, sum(documents)::bigint as total, sum(quarantined)::bigint as refused
        from ops.batches
        where collection = ? and processed_at > ?::timestamptz - interval 24 hours
        group by site
        having total >= ? and 100.0 * refused / total > ?
        order by site
        """,
        [collection.name, now, LEAST_DOCUMENTS, most_pct],
    ).fetchall()
    return [RefusedShare(*row) for row in rows]


def _short(collection: Collection) -> str:
    return collection.name.removeprefix("nightscout_")


def _rows(settings: Settings, choice: Choice, query: str, *, with_hash: bool = False) -> list[tuple[Any, ...]]:
    """The rows of a query over `refused`, the documents of the choice."""
    if not settings.has_warehouse:
        raise LakehouseError("There is no warehouse yet.", "Run `make run` first.")
    conditions = [
        f"{column} = {sql_text(value)}"
        for column, value in (("site", choice.site), ("reason", choice.reason), ("collection", choice.collection))
        if value is not None
    ]
    digest = ", document_hash as hash" if with_hash else ""
    # The views of the lake, not the model: they are there even if a run was stopped before its first model.
    parts = " union all ".join(
        f"""
        select
            site, '{_short(collection)}' as collection, nightscout_id as document_id, quarantine_reason as reason,
            document, batch, first_fetched_at as first_seen_at, fetched_at as last_seen_at{digest}
        from lake.{collection.name}
        where kind = '{QUARANTINED}' and not is_deleted
        """
        for collection in COLLECTIONS
    )
    where = f"where {' and '.join(conditions)}" if conditions else ""
    with connect_warehouse(settings, read_only=True) as warehouse:
        try:
            return warehouse.execute(f"with refused as (from ({parts}) {where}) {query}").fetchall()
        except duckdb.BinderException:
            raise LakehouseError("The lake was written by an older version.", "Run `make run` first.") from None
        except duckdb.CatalogException:
            raise LakehouseError("Nothing has been processed yet.", "Run `make run` first.") from None
