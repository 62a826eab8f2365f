"""Data quality: suites of expectations, the frames they look at, what came of them, and the report of it."""
