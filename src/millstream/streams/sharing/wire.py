"""What goes between the processes of a flow: messages over pipes, each with its length before it."""

from __future__ import annotations

import io
import pickle
import sys
import types
from typing import IO, Any

import msgspec
import polars as pl

from ..errors import FlowError
from ..flow import Flow
from ..steps import SourceState


class Start(msgspec.Struct):
    """What a process is told first."""

    flow: bytes
    address: str
    """Where the log is."""
    keys: Any
    """Where the keys of personal data are, if that was said."""
    modules: list[str]
    """Those that define classes of events."""
    classes: frozenset[str]
    """The types of events that have a class."""
    index: int
    count: int
    rows: int
    memory: int | None
    """So many bytes of its state stay in its memory; None for all."""
    name: str
    position: int
    sources: tuple[SourceState, ...]
    split: bool


class Work(msgspec.Struct):
    """Take in what there is up to a position, or about so many rows of it."""

    until: int
    rows: int


class Ask(msgspec.Struct):
    """Tell whether a result waits for the time of some sources, by their numbers, to go on."""

    sources: list[int]


class Waits(msgspec.Struct):
    """Whether one does."""

    some: bool


class Ready(msgspec.Struct):
    """A process has taken up its part of the state."""


class Failed(msgspec.Struct):
    """A process cannot go on."""

    error: BaseException


class _Pickler(pickle.Pickler):
    def reducer_override(self, given: Any) -> Any:
        if isinstance(given, types.FunctionType | type) and given.__module__ == "__main__":
            raise pickle.PicklingError(f"{given.__qualname__} is defined in the script itself")
        if isinstance(given, pl.DataFrame):
            # Faster than what Polars does by itself, and without compression: it goes from memory to memory.
            held = io.BytesIO()
            given.write_ipc_stream(held, compression="uncompressed", compat_level=pl.CompatLevel.newest())
            return _frame, (held.getvalue(),)
        return NotImplemented


def _frame(body: bytes) -> pl.DataFrame:
    return pl.read_ipc_stream(io.BytesIO(body)) if body else pl.DataFrame()


def packed(message: Any) -> bytes:
    """A message as bytes."""
    held = io.BytesIO()
    _Pickler(held, 5).dump(message)
    return held.getvalue()


def packed_flow(flow: Flow) -> bytes:
    """A flow as bytes that another process understands.

    Raises:
        FlowError: It has a function that cannot be found by its name there.
    """
    try:
        return packed(flow)
    except Exception as error:
        raise FlowError(
            f"the flow cannot be sent to other processes: {error}",
            hint="Define its functions in a module, under a name, and not in the script itself or in a function",
        ) from error


def send(to: IO[bytes], body: bytes) -> None:
    """Send a message."""
    to.write(len(body).to_bytes(8, "little"))
    to.write(body)
    to.flush()


def receive(source: IO[bytes]) -> Any | None:
    """The next message; None when there will be no more."""
    head = _exactly(source, 8)
    if head is None:
        return None
    body = _exactly(source, int.from_bytes(head, "little"))
    return None if body is None else pickle.loads(body)


def _exactly(source: IO[bytes], size: int) -> bytes | None:
    body = source.read(size)
    return body if len(body) == size else None


def search_path() -> list[str]:
    """Where this process finds modules, for another one of any working directory."""
    import os

    return [os.path.abspath(place) for place in sys.path]
