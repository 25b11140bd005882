"""Retention: how much of a stream is to be kept, said by rules that name a stream or a category."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import msgspec

from ...errors import InvalidRetention, InvalidStreamName, InvalidTime, NotFound
from ...sizes import parsed_size
from ...storage.base import category_of
from ...time import duration_micros
from ..staging import check_label, check_stream
from .ledger import STREAM, RetentionSet
from .relink import headers, sizes

if TYPE_CHECKING:
    from ..log import Log

Keep = timedelta | int | str
"""How much to keep: an age (``"30d"`` or a timedelta), a number of events (``1_000_000``), a size (``"10GB"``)."""

_NUMBER = re.compile(r"\d+(_\d+)*")
_HINT = "Give an age such as '30d', a number of events such as 1_000_000, or a size such as '10GB'"


class Amount(msgspec.Struct, frozen=True):
    """How much to keep."""

    kind: Literal["age", "count", "size"]
    number: int
    """Microseconds, events or bytes."""
    text: str
    """As it is written: `amount` understands it."""


def amount(keep: object) -> Amount:
    """What ``keep=`` says.

    Raises:
        InvalidRetention: Nothing that is understood.
    """
    if isinstance(keep, timedelta):
        keep = f"{duration(keep)}us"
    if isinstance(keep, int) and not isinstance(keep, bool):
        if keep < 0:
            raise InvalidRetention(f"keep={keep} is negative", hint=_HINT)
        return Amount("count", keep, str(keep))
    if not isinstance(keep, str):
        raise InvalidRetention(f"keep={keep!r:.60} is not an amount", hint=_HINT)
    text = keep.strip()
    if _NUMBER.fullmatch(text):
        return Amount("count", int(text), str(int(text)))
    if (size := parsed_size(text)) is not None:
        return Amount("size", *size)
    return Amount("age", duration(text), text)


def duration(keep: timedelta | str) -> int:
    try:
        return duration_micros(keep)
    except InvalidTime as error:
        raise InvalidRetention(f"keep={keep!r:.60} is not an amount", hint=_HINT) from error


def check_pattern(pattern: object) -> str:
    """A stream's name, or a beginning of names followed by ``*``, as what rules are about.

    Raises:
        InvalidRetention: It is neither, takes in all streams, or the stream where rules themselves are kept.
    """
    if pattern == "*":
        raise InvalidRetention(
            "'*' takes in every stream, those of aggregates too",
            hint="Name the streams or categories one by one, such as 'clicks' and 'sensor-*'",
        )
    try:
        name = check_stream(pattern.removesuffix("*") if isinstance(pattern, str) else pattern)
    except InvalidStreamName as error:
        raise InvalidRetention(error.message, hint="Give a stream, or a category such as 'sensor-*'") from error
    assert isinstance(pattern, str)
    if name.startswith("$") or STREAM.startswith(name):
        raise InvalidRetention(
            f"{pattern!r:.80} takes in {STREAM!r}, which says what was trimmed", hint="Name other streams"
        )
    return pattern


def check_known(log: Log, pattern: object) -> str:
    """The same, of streams that are there.

    Raises:
        StreamNotFound: A stream is named that is not.
    """
    checked = check_pattern(pattern)
    if not checked.endswith("*"):
        log.stream(checked)
    return checked


def check_by(by: str | None) -> str:
    """Who does it: by default, the user of the operating system."""
    if by is not None:
        return check_label(by, "name of who does it")
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"


class Rule(msgspec.Struct, frozen=True):
    """How much of some streams is kept.

    Attributes:
        pattern: The stream, or the beginning of the names of the streams followed by ``*``. Each keeps as much.
        keep: How much: an age, a number of events or a size, as text.
        archive: The location of the archive that takes the rest; None when the rest is dropped.
        by: Who made the rule.
    """

    pattern: str
    keep: str
    archive: str | None
    by: str


class Task(msgspec.Struct, frozen=True):
    """A rule applied to one stream."""

    stream: str
    keep: Amount
    archive: str | None
    frames_only: bool
    """The rule does not name the stream or its category: single events and objects are not its business."""

    @property
    def rule(self) -> str:
        """The rule in words."""
        return f"keep {self.keep.text}"


def retain(log: Log, stream: str, keep: Keep | None, archive: str | None, by: str | None) -> None:
    """See `Log.retain`."""
    from .archive import archive_at

    who, pattern = check_by(by), check_pattern(stream)
    limit = None if keep is None else amount(keep)
    ledger = log.archives.ledger.refresh()
    if limit is None:
        if archive is not None:
            raise InvalidRetention("archive= is given without keep=", hint=_HINT)
        if pattern not in ledger.rules:
            raise NotFound(f"there is no rule for {pattern!r}", hint="log.rules() gives those that are")
        ledger.tell(RetentionSet(pattern=pattern, keep=None, by=who))
        return
    place = None if archive is None else archive_at(log, archive, who)
    ledger.tell(RetentionSet(pattern=pattern, keep=limit.text, archive=place, by=who))


def rules(log: Log) -> tuple[Rule, ...]:
    """See `Log.rules`."""
    ledger = log.archives.ledger.refresh()
    return tuple(
        Rule(pattern, rule.keep or "", ledger.archives.get(rule.archive or ""), rule.by)
        for pattern, rule in sorted(ledger.rules.items())
    )


def tasks(log: Log, rules: dict[str, RetentionSet], only: str | None) -> Iterator[Task]:
    """What there is to do by rules, stream by stream. The most exact rule for a stream is the one that counts.

    Args:
        only: Only streams that fit this pattern.
    """
    for pattern, rule in sorted(rules.items()):
        assert rule.keep is not None
        keep = amount(rule.keep)
        for info in log.streams(pattern):
            if _best(info.name, rules) == pattern and (only is None or fits(info.name, only)):
                yield Task(info.name, keep, rule.archive, not names(pattern, info.name))


def once(log: Log, pattern: str, keep: Amount, archive: str | None) -> Iterator[Task]:
    """The same for one amount that is no rule."""
    for info in log.streams(pattern):
        yield Task(info.name, keep, archive, not names(pattern, info.name))


def fits(stream: str, pattern: str) -> bool:
    """Whether a stream is one of those that a pattern stands for."""
    return stream.startswith(pattern[:-1]) if pattern.endswith("*") else stream == pattern


def names(pattern: str, stream: str) -> bool:
    """Whether a pattern names the stream itself or its whole category, not just a few letters of many."""
    return pattern == stream or (pattern.endswith("*") and pattern.startswith(category_of(stream)))


def _best(stream: str, rules: dict[str, RetentionSet]) -> str:
    return max((p for p in rules if fits(stream, p)), key=lambda p: (not p.endswith("*"), len(p)))


def bound(log: Log, task: Task) -> int:
    """The position before which the task's stream is not to be kept: runs that end before it may go."""
    amount = task.keep
    if amount.kind == "age":
        return log.store.position_at(log.store.now() - amount.number) + 1
    version = log.version(task.stream)
    if amount.kind == "count":
        return log.store.version_bounds(task.stream, 1, version - amount.number + 1, 0, log.head + 1)[1]
    return _by_size(log, task.stream, amount.number)


def _by_size(log: Log, stream: str, limit: int) -> int:
    """Where the newest runs, oldest first, whose bodies have no more than so many bytes, begin."""
    left = limit
    for runs in headers(log, stream, 0, log.head + 1, backwards=True):
        found = sizes(log, runs)
        for run in runs:
            left -= found[run.position][1]
            if left < 0:
                return run.last + 1
    return 0
