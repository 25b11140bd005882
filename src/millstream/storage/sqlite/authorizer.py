"""What SQLite asks before it compiles a statement: some users are held to rules, the library itself is not."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

Rule = Callable[[int, Any, Any, Any], bool]
"""Says whether an action is allowed, by its number, its two arguments and the database."""


class Authorizer:
    """The authorizer of one connection: set once, since SQLite compiles everything anew when one is set.

    Attributes:
        rule: What statements are held to that are compiled now, if they are.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.rule: Rule | None = None
        connection.set_authorizer(self._authorize)

    def _authorize(self, action: int, first: Any, second: Any, database: Any, trigger: Any) -> int:
        allowed = self.rule is None or self.rule(action, first, second, database)
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY
