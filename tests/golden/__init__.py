"""Golden tests: what the suite plans, prints and tabulates today, held against what is committed."""
