"""Reports on tables: the main one, by class, two rows, against a baseline, against published values."""
