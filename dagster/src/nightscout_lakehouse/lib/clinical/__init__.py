"""Figures that plain SQL cannot compute: pure functions on arrays, and their registration with DuckDB."""
