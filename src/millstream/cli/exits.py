"""What the command ends with: its exit codes, and how an error is told."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from ..errors import MillstreamError
from ..storage.redact import redact

EXIT_CODES = {
    0: "It did what was asked.",
    1: "It failed: the file is no log or is damaged, the disk is full, the log is locked or read-only …",
    2: "It was called wrongly, or was given something that cannot be stored: an argument, an event, a line.",
    3: "What was asked for is not there: the log, the stream, the file.",
    4: "The log, as it stands, does not allow it: another version than expected, a closed stream, an id used before; a"
    " copy, or a log that has moved.",
    5: "A rule of the domain rejects it.",
    130: "It was interrupted with Ctrl-C.",
    141: "Whoever read its output went away, as `head` does.",
}

_HINTS = {
    "stream-not-found": "List the streams with: millstream streams LOG",
    "log-locked": "End the process that is writing, or try again",
    "clock-jumped": "Set the clock right, or accept it as it is with --confirm-clock",
    "damaged-log": "Find the extent with: millstream verify LOG; then restore from a backup",
}
"""Hints for those at a terminal, where the library's speak of Python."""


def tell(message: str, hint: str = "") -> None:
    """An error on stderr: one line, and its hint on a second; without what could be a password."""
    lines = [f"error: {_one_line(message)}"]
    if hint:
        lines.append(f"hint: {_one_line(hint)}")
    # Neither output need still be open: it is the error itself that matters.
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    with suppress(OSError, ValueError):
        print("\n".join(lines), file=sys.stderr, flush=True)


def tell_error(error: MillstreamError) -> int:
    """Tell an error of the library; its exit code."""
    hint = _HINTS.get(error.code, error.hint)
    if error.code == "not-found" and "list the streams" in hint.lower():
        hint = _HINTS["stream-not-found"]
    tell(error.message, _as_options(hint))
    return error.exit_code


def _as_options(hint: str) -> str:
    """A hint that names arguments of a capture, as it is said at a terminal."""
    for said, option in (("resync=True", "--resync"), ("prefix='shop/'", "--prefix shop/"), ("prefix=", "--prefix")):
        hint = hint.replace(said, option)
    return hint


def silence_output() -> None:
    """Let nothing more be written to an output that nobody reads, not even while the interpreter ends."""
    # An output that is no file of the system's keeps nothing that could still be written.
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(redact(str(text)).split()))
