"""Dagster definitions: they wire the pure code of `lib` together and do nothing else."""
