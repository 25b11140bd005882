"""For tests of what is built on Millstream: given/when/then, a clock, crashes, servers, and what a log must fulfil."""

from .clock import FakeClock
from .converged import assert_converged
from .crash import crash_at
from .flows import assert_flow
from .postgres import PostgresServer
from .scenario import Outcome, Scenario, given

__all__ = ["FakeClock", "Outcome", "PostgresServer", "Scenario", "assert_converged", "assert_flow", "crash_at", "given"]
