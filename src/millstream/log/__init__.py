"""The log: append, read, scan and follow; runs and their encodings; conditions; the hash chain."""

from .framing import frame_of
from .log import Log, open
from .records import Recorded, Run
from .transaction import Transaction

__all__ = ["Log", "Recorded", "Run", "Transaction", "frame_of", "open"]
