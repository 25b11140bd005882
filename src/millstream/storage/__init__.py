"""Stores under the log: one contract (`base`), one folder for each of its kinds."""
