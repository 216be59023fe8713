"""Other views of the outcomes: by class, two rows, over a baseline, beside published figures."""
