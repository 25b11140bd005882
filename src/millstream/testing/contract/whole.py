"""The whole contract of a log in one process."""

from __future__ import annotations

from .appending import Appending
from .frames import Frames
from .keeping import Keeping
from .reading import Reading


class LogContract(Appending, Frames, Reading, Keeping):
    """What every store of a log promises. One hook: `open`."""
