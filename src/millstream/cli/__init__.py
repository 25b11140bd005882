"""The ``millstream`` command: one file per verb or noun; `app` puts them together."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the ``millstream`` command and exit with its code."""
    try:
        from .app import command

        command().main(args=None if arguments is None else list(arguments), prog_name="millstream")
    except KeyboardInterrupt:
        sys.exit(130)
