"""Tables of a database that one of its users is not to use, though they stand beside its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from ..errors import UsageError

_LOOKS = re.compile(
    r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/|\b(?:from|join|into|update|table)\s+(?:only\s+|if\s+exists\s+)?(?:(\w+)|\"((?:[^\"]|\"\")+)\")",
    re.DOTALL | re.IGNORECASE,
)


_OWN = "millstream_"
"""How the names of this library's tables begin."""
_LENT = frozenset({"millstream_lent", "millstream_upsert"})
"""What passes for a table while a frame is handed on."""


class Watch:
    """Which tables are not to be used, and what is to be said about it. Those of this library are among them.

    Args:
        tables: The names of others in lower case.
        refusal: Makes the error for one of these.
    """

    def __init__(self, tables: Collection[str], refusal: Callable[[str], Exception]) -> None:
        self.tables = frozenset(tables)
        self._refusal = refusal
        self._known: set[str] = set()

    def keeps(self, table: str) -> bool:
        """Whether a table is not to be used, by its name in lower case."""
        return table in self.tables or (table.startswith(_OWN) and table not in _LENT)

    def refusal(self, table: str) -> Exception:
        """The error for one that is not."""
        if table in self.tables:
            return self._refusal(table)
        return UsageError(
            f"the table {table!r} is the library's own: it says how far the read model has come, among other things",
            hint="Leave the tables whose names begin with millstream_ alone",
        )

    def check(self, sql: str) -> None:
        """Look for the tables in the text of a statement: as far as that says what it uses.

        Raises:
            Exception: The refusal.
        """
        if sql in self._known:
            return
        for plain, quoted in _LOOKS.findall(sql):
            table = (plain or quoted.replace('""', '"')).lower()
            if self.keeps(table):
                raise self.refusal(table)
        if len(self._known) < 1_000:
            self._known.add(sql)
