"""Flows as the supervisor keeps them going: a new run of the flow for each start."""

from __future__ import annotations

from ..log import Log
from ..log.checkpoints import peek
from ..streams.errors import FlowError
from ..streams.flow import Flow
from ..streams.running import Running, number_of
from ..streams.spilling import size


class LiveFlow:
    """A flow as background work: `supervisor.Background`, filled in."""

    def __init__(self, flow: Flow, memory: str | int | None = None, processes: int = 1) -> None:
        if flow.sink is None:
            raise FlowError("a flow that runs needs an end", hint="End it with .to(stream, type=...), or to_files(...)")
        self._flow = flow
        self._memory = None if memory is None else size(memory)
        self._processes = number_of(processes)
        self._running: Running | None = None
        self.name = flow.sink.name

    def start(self, log: Log) -> None:
        """Take the flow up where it was."""
        self._running = Running(log, self._flow, memory=self._memory, processes=self._processes).start()

    def stop(self) -> None:
        """End after the batch at hand is committed."""
        running, self._running = self._running, None
        if running is not None and running.error is None:
            running.stop()

    def position(self, log: Log) -> int:
        """How far its checkpoint has come in the log; whichever process keeps it."""
        with log.connect() as db:
            checkpoint = peek(db, f"flow:{self.name}")
        return checkpoint.position if checkpoint is not None else 0

    @property
    def error(self) -> BaseException | None:
        """What made the flow fail, if it did."""
        return self._running.error if self._running is not None else None
