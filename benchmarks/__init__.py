"""Measurements: `python -m benchmarks NAME` prints its tables, `python -m benchmarks all --out FILE.md` a report."""
