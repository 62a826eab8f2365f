"""Validations between the steps of the pipeline."""
