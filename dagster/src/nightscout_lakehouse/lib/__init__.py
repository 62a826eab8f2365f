"""Pure code of the lakehouse: nothing in here knows of Dagster."""
