"""What every materialized table shows in the UI: rows, columns, from when to when, size, newest rows."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import dagster as dg

from nightscout_lakehouse.lib.table_profile import TableProfile


def table_metadata(profile: TableProfile, descriptions: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Metadata of a table.

    Args:
        profile: The table at a glance.
        descriptions: What its columns mean, by their names.
    """
    described = descriptions or {}
    columns = [dg.TableColumn(name, kind, description=described.get(name)) for name, kind in profile.columns]
    metadata: dict[str, Any] = {
        "dagster/row_count": profile.row_count,
        "dagster/column_schema": dg.TableSchema(columns=columns),
        "preview": dg.MetadataValue.md(profile.preview),
    }
    if profile.bytes is not None:
        metadata["bytes"] = profile.bytes
    if profile.time_column:
        metadata |= {
            f"first_{profile.time_column}": _time(profile.first),
            f"last_{profile.time_column}": _time(profile.last),
        }
    return metadata


def _time(moment: Any) -> dg.MetadataValue:
    if isinstance(moment, datetime):
        return dg.MetadataValue.timestamp(moment)
    return dg.MetadataValue.text(moment.isoformat()) if moment else dg.MetadataValue.null()
