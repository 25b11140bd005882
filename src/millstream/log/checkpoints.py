"""Checkpoints: how far a consumer has come, kept beside what it produced, and fenced.

A checkpoint is a row in the same database as the consumer's output, changed in the same transaction, by
compare-and-set on position and epoch. Whoever takes a consumer over raises its epoch; the one before, paused or
forgotten, then finds no row to change and loses its work rather than doing it twice.
"""

from __future__ import annotations

import msgspec

from ..errors import ConsumerFenced
from ..storage.database import Database

TABLE = "millstream_checkpoints"
TABLES = {TABLE: "name text primary key, position bigint not null, epoch bigint not null"}
"""The tables that consumers keep here, made when first needed: their columns by their names."""


class Checkpoint(msgspec.Struct, frozen=True):
    """How far a consumer has come.

    Attributes:
        name: The consumer's name.
        position: The last position of the log that it is done with.
        epoch: Raised by each taker; only the last one can move the checkpoint.
    """

    name: str
    position: int
    epoch: int


def take(db: Database, name: str, *, start: int = 0) -> Checkpoint:
    """Become the holder of a consumer; whoever was it before is fenced. Call inside a transaction.

    Args:
        start: Where a consumer begins that has no checkpoint yet.
    """
    db.ensure_table(TABLE, TABLES[TABLE])
    db.execute(
        f"insert into {db.own(TABLE)} as held (name, position, epoch) values (?, ?, 1)"
        " on conflict (name) do update set epoch = held.epoch + 1",
        (name, start),
    )
    found = peek(db, name)
    assert found is not None
    return found


def advance(db: Database, checkpoint: Checkpoint, position: int) -> Checkpoint:
    """Move a checkpoint, in the transaction that holds the work up to there.

    Raises:
        ConsumerFenced: Another holder has taken over. Roll back.
    """
    changed = db.execute(
        f"update {db.own(TABLE)} set position = ? where name = ? and position = ? and epoch = ?",
        (position, checkpoint.name, checkpoint.position, checkpoint.epoch),
    ).rowcount
    if changed != 1:
        raise ConsumerFenced(checkpoint.name)
    return Checkpoint(checkpoint.name, position, checkpoint.epoch)


def peek(db: Database, name: str) -> Checkpoint | None:
    """A consumer's checkpoint, without taking it; None when it has none."""
    if not db.has_table(TABLE):
        return None
    row = db.one(f"select name, position, epoch from {db.own(TABLE)} where name = ?", (name,))
    return Checkpoint(**row) if row else None


def begin(db: Database, name: str) -> None:
    """Note a consumer that nobody has taken yet. Call inside a transaction."""
    db.ensure_table(TABLE, TABLES[TABLE])
    db.execute(
        f"insert into {db.own(TABLE)} (name, position, epoch) values (?, 0, 0) on conflict (name) do nothing", (name,)
    )


def parts_of(db: Database, name: str) -> list[Checkpoint]:
    """The checkpoint of a consumer, or those of its partitions, which are named ``name/1``, ``name/2``."""
    if not db.has_table(TABLE):
        return []
    rows = db.query(f"select name, position, epoch from {db.own(TABLE)} order by name")
    return [Checkpoint(**row) for row in rows if row["name"] == name or is_part(row["name"], name)]


def is_part(name: str, whole: str) -> bool:
    """Whether this is the name of a partition: others may begin with that of the whole and a slash, too."""
    begin, _, number = name.rpartition("/")
    return begin == whole and number.isdecimal() and number.isascii()


def drop(db: Database, name: str) -> None:
    """Forget a consumer's checkpoint, if it has one. Call inside a transaction."""
    db.ensure_table(TABLE, TABLES[TABLE])
    db.execute(f"delete from {db.own(TABLE)} where name = ?", (name,))


def reached(db: Database, name: str) -> int:
    """How far a consumer has come; 0 when it has no checkpoint."""
    found = peek(db, name)
    return found.position if found is not None else 0
