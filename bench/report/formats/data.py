"""CSV and JSON for other programs: fractions in full precision, one record per value."""

from __future__ import annotations

import csv as csv_format
import io
import json as json_format
from collections.abc import Sequence

from bench.report.formats.text_table import REPORTERS, TextTable


@REPORTERS.register("csv")
def csv(tables: Sequence[TextTable]) -> str:
    """All records in one table; an empty field is a figure that does not exist."""
    records = [record for table in tables for record in table.records]
    names = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv_format.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


@REPORTERS.register("json")
def json(tables: Sequence[TextTable]) -> str:
    """A list of tables: title, notes, and records."""
    written = [{"title": table.title, "notes": table.notes, "records": table.records} for table in tables]
    return json_format.dumps(written, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
