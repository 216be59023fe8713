"""Tables for other programs: fractions in full precision, one record per figure."""

from __future__ import annotations

import csv as csv_format
import io
import json as json_format
from collections.abc import Sequence

from bench.report.formats.sheet import REPORTERS, Sheet


@REPORTERS.register("csv")
def csv(sheets: Sequence[Sheet]) -> str:
    """All records in one table; an empty field is a figure that does not exist."""
    records = [record for sheet in sheets for record in sheet.records]
    names = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv_format.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


@REPORTERS.register("json")
def json(sheets: Sequence[Sheet]) -> str:
    """A list of tables: title, notes, and records."""
    tables = [{"title": sheet.title, "notes": sheet.notes, "records": sheet.records} for sheet in sheets]
    return json_format.dumps(tables, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
