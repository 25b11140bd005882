"""The contract of a log, as tests: subclass `LogContract`, say how to open one, and run pytest.

Example:
    class TestMyStore(LogContract):
        def open(self, **options):
            return my_open(self.folder / "log", **options)
"""

from .shared import SharedLogContract as SharedLogContract
from .whole import LogContract as LogContract
