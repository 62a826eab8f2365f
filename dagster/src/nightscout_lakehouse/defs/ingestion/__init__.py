"""Assets from the Nightscout server to Parquet."""
