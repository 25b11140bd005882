"""The ``millstream`` command: one file per verb or noun; `app` puts them together."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the ``millstream`` command and exit with its code."""
    program = arguments is None
    try:
        if program:
            gc.disable()
        from .app import command

        if program:
            # What has been imported stays to the end: to look through it for rubbish, last of all when the process
            # ends, would take a quarter of the time that a short command takes.
            gc.freeze()
            gc.enable()
        command().main(args=None if arguments is None else list(arguments), prog_name="millstream")
    except KeyboardInterrupt:
        sys.exit(130)
