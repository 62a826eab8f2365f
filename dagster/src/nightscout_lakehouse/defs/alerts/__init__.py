"""Sensors that tell someone."""
