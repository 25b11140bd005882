"""The log: append, read, scan and follow; runs and their encodings; conditions; the hash chain."""

from .log import Log, open
from .records import Recorded, Run, frame_of
from .transaction import Transaction

__all__ = ["Log", "Recorded", "Run", "Transaction", "frame_of", "open"]
