"""Measurements of the suite's own attacks: against the released implementation, other libraries, and bare passes.

`make benchmark` runs all of them; each module also runs alone, such as `python -m benchmarks.parity --help`.
"""
