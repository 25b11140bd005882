"""The moment of moving house: a copy becomes the home of the log, and what was the home takes no more appends."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import msgspec

from ...errors import NotAPrefix, UsageError
from ...storage.raw import Role
from .copy import Report, copy

if TYPE_CHECKING:
    from ..log import Log


class Switched(msgspec.Struct, frozen=True):
    """What a switch did.

    Attributes:
        position: The head that both have; the new home goes on from there.
        hash: Its hash, in hex.
        pause: For how many seconds neither took appends.
    """

    position: int
    hash: str
    pause: float


def switch(source: Log, target: Log, *, verify: bool = False, progress: Report | None = None) -> Switched:
    """Make the copy the home: catch up, end appends to the source, copy the rest, begin appends to the target.

    Captures, syncs and flows go on in the target where they were in the source; inline projections are made anew
    there. The source stays readable and says where it has moved to. Interrupted, it is done again from where it was.

    Args:
        verify: Walk the target before the pause begins, up to the source's hash.

    Raises:
        NotAPrefix: The target is not a copy of the source.
    """
    moved = source.store.raw_head().role
    there = target.store.raw_head()
    if moved is None or moved.kind != "moved":
        copy(source, target, verify=verify, progress=progress)
    elif there.role is None and there.head.position >= source.head:
        raise UsageError(
            f"{source.location} has moved already", hint=f"Open the log at {moved.place or target.location}"
        )
    elif there.role is None or not _same(moved.place, target.location):
        # A switch that was cut short has left a copy at that place: beside any other, a home may be in use there.
        raise UsageError(
            f"{source.location} has moved to {moved.place}, not to {target.location}",
            hint="Switch from its new home; or take the switch back with `millstream promote`, if none appends there",
        )
    begun = time.monotonic()
    source.store.set_role(Role("moved", target.location))
    try:
        done = copy(source, target)
        last = source.store.raw_page(done.position, state=True)
        if last.runs or source.store.raw_head().head.hash.hex() != done.hash:
            raise NotAPrefix(target.location, "it does not end where the source does")
        target.store.place_raw(last, source.location)
    except BaseException:
        source.store.set_role(moved)
        raise
    target.store.set_role(None)
    return Switched(done.position, done.hash, time.monotonic() - begun)


def _same(one: str, other: str) -> bool:
    if "://" in one + other:
        return one == other
    return os.path.abspath(one) == os.path.abspath(other)


class Promoted(msgspec.Struct, frozen=True):
    """What a promotion found.

    Attributes:
        position: The head that the home goes on from.
        state_at: The position that captures, syncs and flows go on from; -1 when they begin anew. Where it is lower
            than ``position``, they do again what lies between.
    """

    position: int
    state_at: int


def promote(log: Log, *, force: bool = False) -> Promoted:
    """Make a copy a home without its source, or one that has moved a home again. Nothing else may be its home.

    Args:
        force: Also where the copy ends inside a commit, or consumers' state is older than its head.

    Raises:
        UsageError: It is a home already; or it needs ``force``.
    """
    found = log.store.raw_head()
    role = found.role
    if role is None:
        raise UsageError(f"{log.location} is no copy: it takes appends", hint="There is nothing to do")
    position = found.head.position
    if role.kind == "replica" and not force:
        if not role.whole:
            raise UsageError(
                f"{log.location} ends inside a commit: the copy of it was cut short",
                hint="Let the copy go on; or accept half of that commit with force (--force)",
            )
        if 0 <= role.state_at < position:
            raise UsageError(
                f"captures and flows of {log.location} would go on from position {role.state_at}, before its head,"
                f" {position}, and do again what lies between",
                hint="Let the copy go on until it is level; or accept it with force (--force)",
            )
    log.store.set_role(None)
    return Promoted(position, position if role.kind == "moved" else role.state_at)
