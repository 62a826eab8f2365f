"""Lineage: OpenLineage events of every run of every step, and where they are kept and sent."""
