"""A process that works on one range of a flow. It ends when the one that started it does, however that happens."""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import signal
import sys
import threading
from typing import Any, BinaryIO

from ...errors import MillstreamError
from ...events import event_class
from ...log.log import Log, open
from ..errors import FlowError
from .ranges import Range
from .share import Share
from .wire import Ask, Failed, Ready, Start, Waits, Work, packed, receive, send


def main() -> None:
    """Answer what comes on the standard input, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The one that started it decides when it ends.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What functions of the flow print is no message.
    orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, orders), daemon=True).start()
    try:
        _serve(orders, out)
    except MillstreamError as error:
        _tell(out, error)
    except BaseException as error:
        _tell(
            out, FlowError(f"a process of the flow fails ({type(error).__name__}: {error})", hint="Look at its output")
        )
        raise
    threading.Event().wait()  # Whoever reads the message ends the process.


def _listen(source: BinaryIO, orders: queue.SimpleQueue[Any]) -> None:
    while True:
        try:
            order = receive(source)
        except BaseException as error:
            orders.put(error)
            return
        if order is None:
            # Nobody wants anything any more, whatever is being done.
            os._exit(0)
        orders.put(order)


def _tell(out: BinaryIO, error: BaseException) -> None:
    try:
        body = packed(Failed(error))
    except Exception:
        body = packed(Failed(FlowError(str(error))))
    with contextlib.suppress(OSError):
        send(out, body)


def _serve(orders: queue.SimpleQueue[Any], out: BinaryIO) -> None:
    start = _next(orders)
    assert isinstance(start, Start)
    for module in start.modules:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    with open(start.address, readonly=True, keys=start.keys) as log:
        share = _share(log, start)
        send(out, packed(Ready()))
        while True:
            order = _next(orders)
            if isinstance(order, Ask):
                send(out, packed(Waits(share.waits(order.sources))))
                continue
            assert isinstance(order, Work)
            for message in share.work(order.until, order.rows):
                send(out, packed(message))


def _next(orders: queue.SimpleQueue[Any]) -> Any:
    order = orders.get()
    if isinstance(order, BaseException):
        raise order
    return order


def _share(log: Log, start: Start) -> Share:
    import pickle

    flow = pickle.loads(start.flow)
    unknown = frozenset(type for type in start.classes if event_class(type) is None)
    share = Share(log, flow, Range(start.index, start.count), start.rows, unknown, start.memory)
    share.load(start.name, start.position, start.sources, split=start.split)
    return share
