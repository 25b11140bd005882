"""For tests of what is built on Millstream: given/when/then, a clock to set, and the contract that a log fulfils."""

from .clock import FakeClock
from .scenario import Outcome, Scenario, given

__all__ = ["FakeClock", "Outcome", "Scenario", "given"]
