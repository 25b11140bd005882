"""A log elsewhere: backups, copies to another home or into a depot, the switch to a copy, and the way back."""

from .backup import backup
from .copy import Copied, Progress, copy
from .restore import restore, restore_file
from .segments import Segments, open_segments
from .switch import promote, switch

__all__ = [
    "Copied",
    "Progress",
    "Segments",
    "backup",
    "copy",
    "open_segments",
    "promote",
    "restore",
    "restore_file",
    "switch",
]
