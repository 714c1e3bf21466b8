"""Measurements: `python -m benchmarks NAME` prints a table, `python -m benchmarks all --out FILE.md` writes a report."""
