"""Tables of a database that one of its users is not to use, though they stand beside its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

_LOOKS = re.compile(
    r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/|\b(?:from|join|into|update|table)\s+(?:only\s+|if\s+exists\s+)?(?:(\w+)|\"((?:[^\"]|\"\")+)\")",
    re.DOTALL | re.IGNORECASE,
)


class Watch:
    """Which tables are not to be used, and what is to be said about it.

    Args:
        tables: Their names in lower case.
        refusal: Makes the error for one of them.
    """

    def __init__(self, tables: Collection[str], refusal: Callable[[str], Exception]) -> None:
        self.tables = frozenset(tables)
        self.refusal = refusal
        self._known: set[str] = set()

    def check(self, sql: str) -> None:
        """Look for the tables in the text of a statement: as far as that says what it uses.

        Raises:
            Exception: The refusal.
        """
        if not self.tables or sql in self._known:
            return
        for plain, quoted in _LOOKS.findall(sql):
            table = (plain or quoted.replace('""', '"')).lower()
            if table in self.tables:
                raise self.refusal(table)
        if len(self._known) < 1_000:
            self._known.add(sql)
