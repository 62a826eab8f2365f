"""The kinds of file that are known, in the order in which a header is tried."""

from collections.abc import Sequence

from nightscout_lakehouse.lib.sources.clarity import ClarityFormat
from nightscout_lakehouse.lib.sources.file_format import FileFormat
from nightscout_lakehouse.lib.sources.generic_csv import GenericFormat
from nightscout_lakehouse.lib.sources.libreview import LibreViewFormat

FORMATS: Sequence[FileFormat] = (ClarityFormat(), LibreViewFormat(), GenericFormat())
