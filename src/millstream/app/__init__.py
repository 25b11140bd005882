"""Composition: commands, queries, projections, captures and flows of one log, run in one process."""
