"""A flow's answers computed anew in one piece: by SQL, from its declaration alone, with none of the operators' code."""

from .check import FlowCheck, check

__all__ = ["FlowCheck", "check"]
