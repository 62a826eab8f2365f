"""The collections of a Nightscout server that are read, each with what sets it apart: one mechanism serves all.

A collection says where its documents are, what the server filters their time by, and which columns the processed rows
have. Source: Nightscout 15.0.7, `lib/server/{entries,treatments,devicestatus,profile,query}.js`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# Ends every row: where the document came from, which version it is, and the time that the server's filter sees
# (null where that is not known exactly).
_BOOKKEEPING = {
    "is_deleted": "boolean",
    "is_duplicate": "boolean",
    "quarantine_reason": "varchar",
    "document": "varchar",
    "document_hash": "varchar",
    "batch": "bigint",
    "document_number": "bigint",
    "fetched_at": "timestamptz",
    "first_fetched_at": "timestamptz",
    "date_ms": "double",
}

QUARANTINED = "quarantined"


@dataclass(frozen=True)
class Collection:
    """One collection of documents.

    Attributes:
        name: Its name in the lake, as folder and as view: `nightscout_…`.
        api_path: Where API v1 lists it.
        api_v3_name: Its name in API v3.
        time_field: The field that the server filters and sorts by; None where the whole list is read at once.
        time_format: How the bounds of the filter are written: epoch milliseconds, or ISO text that is compared as text.
        text_time_field: A second field with the time as text, by which documents without a numeric time are found.
        kinds: Partitions besides `quarantined`.
        file_name: Name of the Parquet file of a partition.
        id_column: Column with `site/id`.
        time_column: Column with the time that partitions and days go by.
        columns: Columns of the processed files with their types; kind, site and month are in the path.
        widest_window_days: Bound on the width of a window, where documents are many and large.
        has_change_hints: Whether API v3 is asked which documents changed.
        documents_per_step: Bound on memory: documents processed at once. A step touches few partitions, since a batch
            is one window of time.
    """

    name: str
    api_path: str
    api_v3_name: str
    time_field: str | None
    time_format: Literal["epoch_ms", "iso_text"]
    kinds: tuple[str, ...]
    file_name: str
    id_column: str
    time_column: str
    columns: Mapping[str, str]
    text_time_field: str | None = None
    widest_window_days: int = 366
    has_change_hints: bool = False
    documents_per_step: int = 500_000

    @property
    def all_kinds(self) -> tuple[str, ...]:
        """All partitions, quarantine last."""
        return (*self.kinds, QUARANTINED)

    @property
    def view_columns(self) -> dict[str, str]:
        """Columns of the view over the processed files, with their types."""
        return {"kind": "varchar", "site": "varchar", "month": "varchar", **self.columns}


ENTRIES = Collection(
    name="nightscout_entries",
    api_path="/api/v1/entries.json",
    api_v3_name="entries",
    time_field="date",
    time_format="epoch_ms",
    text_time_field="dateString",
    kinds=("sgv", "mbg", "cal"),
    file_name="entries.parquet",
    id_column="entry_id",
    time_column="reading_timestamp",
    has_change_hints=True,
    columns={
        "entry_id": "varchar",
        "nightscout_id": "varchar",
        "reading_timestamp": "timestamptz",
        "glucose_mg_dl": "double",
        "direction": "varchar",
        "device": "varchar",
        "trend": "integer",
        "noise": "integer",
        "filtered": "double",
        "unfiltered": "double",
        "rssi": "integer",
        "utc_offset_minutes": "integer",
        "slope": "double",
        "intercept": "double",
        "scale": "double",
        **_BOOKKEEPING,
    },
)

TREATMENTS = Collection(
    name="nightscout_treatments",
    api_path="/api/v1/treatments.json",
    api_v3_name="treatments",
    time_field="created_at",
    time_format="iso_text",
    kinds=("treatment",),
    file_name="treatments.parquet",
    id_column="treatment_id",
    time_column="treatment_timestamp",
    has_change_hints=True,
    columns={
        "treatment_id": "varchar",
        "nightscout_id": "varchar",
        "treatment_timestamp": "timestamptz",
        "utc_offset_minutes": "integer",
        "event_type": "varchar",
        "insulin_units": "double",
        "carbs_g": "double",
        "protein_g": "double",
        "fat_g": "double",
        "duration_minutes": "double",
        "rate_units_per_hour": "double",
        "rate_percent": "double",
        "entered_by": "varchar",
        "notes": "varchar",
        "reason": "varchar",
        "device": "varchar",
        "is_automatic": "boolean",
        "bolus_type": "varchar",
        "split_now_pct": "double",
        "split_ext_pct": "double",
        "extended_insulin_rate": "double",
        "pre_bolus_minutes": "double",
        "profile_name": "varchar",
        "profile_percentage": "double",
        "profile_timeshift_hours": "double",
        "target_low": "double",
        "target_high": "double",
        "glucose": "double",
        "glucose_type": "varchar",
        "glucose_units": "varchar",
        **_BOOKKEEPING,
    },
)

DEVICE_STATUS = Collection(
    name="nightscout_device_status",
    api_path="/api/v1/devicestatus.json",
    api_v3_name="devicestatus",
    time_field="created_at",
    time_format="iso_text",
    kinds=("device_status",),
    file_name="device_status.parquet",
    id_column="device_status_id",
    time_column="device_status_timestamp",
    widest_window_days=7,
    documents_per_step=50_000,
    columns={
        "device_status_id": "varchar",
        "nightscout_id": "varchar",
        "device_status_timestamp": "timestamptz",
        "utc_offset_minutes": "integer",
        "device": "varchar",
        "loop_system": "varchar",
        "iob_units": "double",
        "basal_iob_units": "double",
        "cob_g": "double",
        "glucose_mg_dl": "double",
        "eventual_glucose_mg_dl": "double",
        "target_glucose_mg_dl": "double",
        "sensitivity_ratio": "double",
        "loop_recommended_bolus_units": "double",
        "insulin_required_units": "double",
        "enacted_bolus_units": "double",
        "temp_basal_rate_units_per_hour": "double",
        "temp_basal_duration_minutes": "double",
        "is_closed_loop": "boolean",
        "predicted_glucose_mg_dl": "double[]",
        "failure_reason": "varchar",
        "pump_reservoir_units": "double",
        "pump_battery_pct": "double",
        "pump_battery_volts": "double",
        "pump_status": "varchar",
        "is_pump_suspended": "boolean",
        "uploader_battery_pct": "double",
        **_BOOKKEEPING,
    },
)

PROFILES = Collection(
    name="nightscout_profiles",
    api_path="/api/v1/profile.json",
    api_v3_name="profile",
    time_field=None,
    time_format="iso_text",
    kinds=("profile",),
    file_name="profiles.parquet",
    id_column="profile_id",
    time_column="profile_timestamp",
    columns={
        "profile_id": "varchar",
        "nightscout_id": "varchar",
        "profile_timestamp": "timestamptz",
        "created_timestamp": "timestamptz",
        "default_profile_name": "varchar",
        "timezone": "varchar",
        "units": "varchar",
        "insulin_action_hours": "double",
        "basal_schedule": "varchar",
        "carb_ratio_schedule": "varchar",
        "sensitivity_schedule": "varchar",
        "target_low_schedule": "varchar",
        "target_high_schedule": "varchar",
        "entered_by": "varchar",
        "store": "varchar",
        **_BOOKKEEPING,
    },
)

COLLECTIONS = (ENTRIES, TREATMENTS, DEVICE_STATUS, PROFILES)
