"""The one-page ambulatory glucose profile (AGP) report."""

from nightscout_lakehouse.lib.agp_report.content import AgpReport, CurvePoint, ProfilePoint, RangeShare, Unit
from nightscout_lakehouse.lib.agp_report.files import write_report

__all__ = ["AgpReport", "CurvePoint", "ProfilePoint", "RangeShare", "Unit", "write_report"]
