"""Showing what a run did: tables, narrative, timeline, Perfetto trace, report, comparison, model graph.

Everything reads the same records, those of a trace folder (see `trace`).
"""
