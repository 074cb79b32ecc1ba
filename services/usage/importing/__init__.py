"""Importers of the call records that real switches write. A new format is one new file and one line in `FORMATS`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from services.usage.importing.asterisk import import_master_csv, import_realtime_csv
from services.usage.importing.freeswitch import import_cdr_csv, import_json_cdr
from services.usage.importing.interface import Importer, ImportReport, LegEvent, RefusedRow
from services.usage.importing.mapped import import_mapped_csv
from services.usage.importing.profile import SwitchProfile, read_profile
from services.usage.importing.rows import COMPRESSED
from services.usage.importing.understanding import Understood, understood

FORMATS: Mapping[str, Importer] = MappingProxyType(
    {
        "asterisk": import_master_csv,
        "asterisk-realtime": import_realtime_csv,
        "freeswitch-csv": import_cdr_csv,
        "freeswitch-json": import_json_cdr,
        "csv": import_mapped_csv,
    }
)

SELF_CLOSING = frozenset({"freeswitch-json"})
"""Formats whose last record closes itself. In every other a last line without its end may be only the beginning of a row."""

__all__ = [
    "COMPRESSED",
    "FORMATS",
    "SELF_CLOSING",
    "ImportReport",
    "Importer",
    "LegEvent",
    "RefusedRow",
    "SwitchProfile",
    "Understood",
    "read_profile",
    "understood",
]
