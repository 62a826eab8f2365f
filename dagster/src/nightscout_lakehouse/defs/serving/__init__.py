"""Publishing to Postgres."""
