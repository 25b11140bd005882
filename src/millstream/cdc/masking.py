"""Personal values of captured rows: sealed in the log with a key of the person whose they are, as those of events are.

In a row, a sealed value is the text that it would be in an event (see `millstream.log.personal.sealing`). The run's
shape names the columns, so that whoever reads needs no filter.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import CaptureError, InvalidEvent, UsageError
from ..log.personal.keys import check_subject
from ..log.personal.sealing import sealed_text
from .shape import Shape
from .values import UNCHANGED, Row

if TYPE_CHECKING:
    from ..log.personal.keys import Keys

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


class Personal:
    """The personal columns of one table, and whose they are.

    Args:
        masks: What becomes of the table's columns.
        subject: The person's name, with columns of the row in braces: ``customer-{id}``.

    Raises:
        UsageError: The subject names no column.
    """

    def __init__(self, table: str, masks: Mapping[str, Any], subject: str) -> None:
        self.table = table
        self.columns = tuple(sorted(name for name, how in masks.items() if how == "personal"))
        self.subject = subject
        try:
            parts = [(name, spec, how) for _, name, spec, how in Formatter().parse(subject) if name is not None]
        except (ValueError, AttributeError, TypeError):
            parts = []
        if not parts or any(not name or spec or how for name, spec, how in parts):
            raise UsageError(
                f"subjects= gives {subject!r:.60} for {table!r}",
                hint="Name the person by columns of the row in braces: 'customer-{id}'",
            )
        self.named_by = tuple(dict.fromkeys(name for name, _, _ in parts))

    def check(self, shape: Shape, masks: Mapping[str, Any]) -> None:
        """See that the columns can be sealed, in rows as the log has them.

        Raises:
            UsageError: The key would be, or what names the person is not in the clear.
        """
        if sealed := sorted(set(shape.key).intersection(self.columns)):
            raise UsageError(
                f"column {sealed[0]!r} of {self.table!r} is of the key: rows could not be told apart once it is erased",
                hint="Mask it by 'hash': rows stay apart, and nobody can read it",
            )
        for name in self.named_by:
            if name not in shape.names or name in masks or name in self.columns:
                raise UsageError(
                    f"subjects= names the person by {name!r}, which {self.table!r} has not in the clear in the log",
                    hint="Name the person by a column that is neither left out nor masked, an id mostly",
                )

    def sealed(self, body: bytes, keys: Keys) -> bytes:
        """The lines of changes with their personal values sealed.

        Whoever was forgotten stays so: their values are erased from the beginning.

        Raises:
            CaptureError: A row does not say whose it is.
            KeysNeeded: There is no place for keys.
        """
        events = [_decode(line) for line in body.split(b"\n")]
        rows = [row for event in events for row in (event["before"], event["after"]) if row is not None]
        held = [(row, self._subject(row)) for row in rows if any(self._is_told(row, name) for name in self.columns)]
        ciphers = keys.ciphers_left({subject: None for _, subject in held})
        for row, subject in held:
            for name in self.columns:
                if self._is_told(row, name):
                    row[name] = sealed_text(_encode(row[name]), subject, ciphers[subject])
        return b"\n".join(map(_encode, events))

    def _is_told(self, row: Row, name: str) -> bool:
        return row.get(name) is not None and row[name] != UNCHANGED

    def _subject(self, row: Row) -> str:
        values = {name: row.get(name) for name in self.named_by}
        for name, value in values.items():
            if value is None or isinstance(value, dict | list):
                raise CaptureError(
                    f"a row of {self.table!r} does not say by {name!r} whose its personal data is",
                    hint="Name the person by columns that are never NULL and always told: of the key, or under"
                    " REPLICA IDENTITY FULL; or leave such rows out by rows=",
                )
        try:
            return check_subject(self.subject.format(**values))
        except InvalidEvent as error:
            raise CaptureError(
                f"a row of {self.table!r} names a person as no subject can be called: {error.message}",
                hint="Name the person by an id",
            ) from error
