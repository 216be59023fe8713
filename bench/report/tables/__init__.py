"""The main table: rows, columns, cells, marks and notes."""
