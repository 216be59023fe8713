"""Golden tests: plans, printed texts and tables are compared with what is committed."""
