"""Nightscout Lakehouse: continuous glucose monitoring data from Nightscout to Parquet, DuckDB and Postgres."""
