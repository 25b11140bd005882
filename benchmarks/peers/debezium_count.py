"""Debezium embedded in Python: prints how many events came, and the seconds from the first to the last."""

from __future__ import annotations

import os
import sys
import threading
import time

from pydbzengine import BasePythonChangeHandler, DebeziumJsonEngine


class Handler(BasePythonChangeHandler):
    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.count = 0
        self.first = 0.0
        self.done = threading.Event()

    def handleJsonBatch(self, records: list) -> None:
        if not self.count:
            self.first = time.perf_counter()
        self.count += len(records)
        if self.count >= self.wanted:
            print(self.count, time.perf_counter() - self.first, flush=True)
            os._exit(0)


with open(sys.argv[1]) as file:
    properties = dict(line.strip().split("=", 1) for line in file)
DebeziumJsonEngine(properties=properties, handler=Handler(int(sys.argv[2]))).run()
