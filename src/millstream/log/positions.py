"""Positions where a plain number would mean something else."""

from __future__ import annotations


class Position(int):
    """A position of the log, for arguments in which a plain int is a version: ``at=ms.Position(120)``."""

    def __repr__(self) -> str:
        return f"Position({int(self)})"
