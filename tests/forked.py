"""Things that a forked child does."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable


def in_child(work: Callable[[], object]) -> None:
    """Do something in a forked child, and see that it went well there."""
    child = begin(work)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def begin(work: Callable[[], object]) -> int:
    """Begin it; the child's number, whose exit status is 0 if it went well."""
    child = os.fork()
    if child == 0:
        # Also one that hangs inside SQLite, where no handler is called, ends.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return child
