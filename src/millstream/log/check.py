"""Whether what is stored can be read: every event through the classes and upcasters of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec

from ..errors import InvalidEvent, KeyLost, KeysNeeded, MillstreamError
from ..events import schema_version
from ..frames import is_frame_schema
from ..storage.base import Scope
from .present import plan_of, together
from .records import Run

if TYPE_CHECKING:
    from .reading import Reader

_EVENTS = 1_024
"""How many events of a run are read at once."""
_NO_CLASS = "no class"


class Checked(msgspec.Struct, kw_only=True):
    """How the stored events of one type and schema are read.

    Attributes:
        type: The type's name, as it is stored.
        schema: The version of their shape, as it is stored; None for frames, whose columns say their shape.
        count: How many there are.
        failed: How many of them cannot be read.
        unknown: How many are read as plain data, because there is no class for them here.
        position: Of the first that failed; of the first at all, if none did.
        reason: Why that one failed, or ``no class``; empty when all is well.
    """

    type: str
    schema: int | None
    count: int = 0
    failed: int = 0
    unknown: int = 0
    position: int = 0
    reason: str = ""


def check_schema(log: Reader, *, progress: Callable[[int, int], None] | None = None) -> list[Checked]:
    """Read every stored event through today's classes and upcasters, and say which types and schemas fail.

    Personal data whose key is not there fails, too, and what was erased passes if the classes can do without it.
    What was trimmed is passed over, and what the log says of itself, in streams whose names begin with ``$``. Needs the
    same memory however much there is.

    Args:
        log: The log.
        progress: Called with the position reached and the head's position, now and then.

    Returns:
        One for each type and schema that is stored, in order of their names.

    Raises:
        DamagedLog: A body cannot be read back.
        DepotError: An archived body cannot be had.

    Example:
        >>> import millstream as ms
        >>> class ParcelWeighed(ms.Event, schema=2):
        ...     grams: int
        >>> log = ms.open()
        >>> receipt = log.append("parcel-1", ms.Plain("ParcelWeighed", {"kilograms": 2}, schema=1))
        >>> [found] = ms.check_schema(log)
        >>> found.type, found.schema, found.count, found.failed, found.position
        ('ParcelWeighed', 1, 1, 1, 1)
    """
    found: dict[tuple[str, int], Checked] = {}
    total = log.head
    for runs in log.stored(Scope(), 0, total + 1):
        for run in log.unsealed(runs):
            if run.stream.startswith("$"):
                continue
            schema = None if is_frame_schema(run.schema) else schema_version(run.schema)
            key = (run.type, schema or 0)
            if key not in found:
                found[key] = Checked(type=run.type, schema=schema, position=run.position)
            for part in _parts(run):
                _check(log, part, found[key])
        if progress is not None:
            progress(runs[-1].last, total)
    return [found[key] for key in sorted(found)]


def _parts(run: Run) -> Iterator[Run]:
    for start in range(run.position, run.last + 1, _EVENTS):
        part = run.cut(start - 1, start + _EVENTS)
        if part is not None:
            yield part


def _check(log: Reader, run: Run, checked: Checked) -> None:
    checked.count += run.count
    plan = plan_of(log, run.kind_id)
    for made in together([run] if plan is None else plan(run)):
        # By position, so that a stored event that is read as several counts once.
        failures: dict[int, MillstreamError] = {}
        unknown: set[int] = set()
        for each in made:
            _read(each, failures, unknown)
        checked.unknown += len(unknown)
        if unknown and not checked.reason:
            checked.reason = _NO_CLASS
        for position, failure in failures.items():
            if not checked.failed:
                checked.position, checked.reason = position, failure.message
            checked.failed += 1


def _read(run: Run, failures: dict[int, MillstreamError], unknown: set[int]) -> None:
    try:
        run.events()
    except (InvalidEvent, KeyLost, KeysNeeded) as error:
        if run.count == 1:
            failures.setdefault(run.position, error)
            return
        for position in range(run.position, run.last + 1):
            part = run.cut(position - 1, position + 1)
            if part is not None:
                _read(part, failures, unknown)
        return
    if run.decodes_as is None:
        unknown.update(range(run.position, run.last + 1))
