"""The forecasts that a predicted low is alerted on, from the serving database, once there is a table of them.

Not from the warehouse: whoever has that file open keeps the pipeline from writing it.
"""

import logging
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime

from psycopg2 import errors

from nightscout_lakehouse.lib.alerts.rules import OLDEST_PREDICTION, PREDICTION_HORIZON, Prediction
from nightscout_lakehouse.lib.embedded_postgres import OWNER, kept_address, password_file, read_password
from nightscout_lakehouse.lib.errors import LakehouseError
from nightscout_lakehouse.lib.postgres_connection import PostgresConnection, parse_database_url
from nightscout_lakehouse.lib.settings import Settings

logger = logging.getLogger(__name__)

# One row per site, forecast and expected time; `made_at` is the time of the newest reading a forecast is made from.
TABLE = "marts.glucose_predictions"
COLUMNS = ("site", "made_at", "prediction_timestamp", "glucose_mg_dl")

_LOWEST_PER_SITE = f"""
select distinct on (site) site, made_at, prediction_timestamp, glucose_mg_dl
from {TABLE}
where
    site = any(%(sites)s)
    and made_at > %(now)s - %(oldest)s
    and prediction_timestamp > %(now)s
    and prediction_timestamp <= %(now)s + %(horizon)s
    and glucose_mg_dl is not null
order by site, made_at desc, glucose_mg_dl, prediction_timestamp
"""


def lowest_predictions(settings: Settings, sites: Collection[str], now: datetime) -> dict[str, Prediction]:
    """The lowest point within the horizon of each site's newest forecast.

    Returns:
        By site; empty where there is no table yet, or no database to ask: it is never started for this.
    """
    if not sites:
        return {}
    values = {"sites": list(sites), "now": now, "oldest": OLDEST_PREDICTION, "horizon": PREDICTION_HORIZON}
    try:
        database = _running_database(settings)
        if database is None:
            return {}
        with database.transaction() as connection, connection.cursor() as cursor:
            cursor.execute("select to_regclass(%s) is not null", [TABLE])
            if cursor.fetchall() != [(True,)]:
                return {}
            try:
                cursor.execute(_LOWEST_PER_SITE, values)
            except errors.UndefinedColumn as error:
                lacking = str(error).partition("\n")[0]
                logger.error("predicted lows are not alerted on: %s needs %s (%s)", TABLE, ", ".join(COLUMNS), lacking)
                return {}
            return {site: Prediction(made_at, at, float(value)) for site, made_at, at, value in cursor.fetchall()}
    except LakehouseError as error:
        # Glucose itself is alerted on all the same.
        logger.info("no forecasts: %s", error)
        return {}


def _running_database(settings: Settings) -> PostgresConnection | None:
    if url := settings.database_url.get_secret_value():
        return parse_database_url(url)
    address = kept_address(settings.postgres_dir)
    password = read_password(password_file(settings.postgres_dir, OWNER)) if address else None
    if password is None:
        return None
    return replace(parse_database_url(f"postgresql://{address}"), password=password)
