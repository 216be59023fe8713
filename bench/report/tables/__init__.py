"""Tables of results: data model, rows, columns, ranking and notes."""
