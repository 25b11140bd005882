"""From where on a flow's rows are its own, when it went on with the state of another: a savepoint's, or a fork's."""

from __future__ import annotations

from ..log import checkpoints
from ..storage.database import Database


def begin(database: Database, name: str, position: int, head: int) -> None:
    """Note that a flow begins with what stands behind a position, and writes behind another. Inside a transaction."""
    for kind, place in (("read", position), ("written", head)):
        checkpoint = f"flow-{kind}-after:{name}"
        checkpoints.drop(database, checkpoint)
        checkpoints.take(database, checkpoint, start=place)


def began(database: Database, name: str) -> tuple[int, int]:
    """The position behind which a flow has read, and that behind which it has written; zero and zero mostly."""
    read, written = (checkpoints.reached(database, f"flow-{kind}-after:{name}") for kind in ("read", "written"))
    return read, written
