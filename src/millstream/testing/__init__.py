"""For tests of what is built on Millstream: a clock to set, and the contract that a log fulfils."""

from .clock import FakeClock

__all__ = ["FakeClock"]
