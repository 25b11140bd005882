"""Statements as this library's users write them, for the driver: ``?`` and ``:name`` become ``$1``, ``$2`` …

The driver's own marks would make users double every ``%``, and differ from SQLite's. An operator that is written
with a question mark has a function of the same meaning (``jsonb_exists`` for ``?``), or is doubled: ``??``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from ...errors import UsageError
from ..database import no_params, no_statement

_TOKEN = re.compile(
    r"""
      [eE]'(?:[^'\\]|\\.|'')*'            # a string with escapes
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | \$(?P<tag>[A-Za-z_]\w*)?\$.*?\$(?P=tag)\$ | \$\$.*?\$\$
    | --[^\n]*
    | /\*.*?\*/
    | (?P<double>\?\?)
    | (?P<mark>\?)
    | ::
    | :(?P<name>[A-Za-z_]\w*)
    | (?P<end>;)
    | (?P<word>[A-Za-z_]\w*)
    | .
    """,
    re.VERBOSE | re.DOTALL,
)

_CONTROL = {
    "abort", "begin", "checkpoint", "commit", "deallocate", "discard", "end", "listen", "load", "notify", "prepare",
    "release", "reset", "rollback", "savepoint", "set", "start", "unlisten", "vacuum",
}  # fmt: skip


class Statement(NamedTuple):
    """A statement with the driver's marks."""

    text: str
    names: tuple[str, ...]
    """The names of its parameters in order; empty when they go by place."""
    marks: int
    """How many parameters go by place."""
    first_words: tuple[str, ...]
    """The first word of each of the statements in the text, in lower case."""

    @property
    def only_reads(self) -> bool:
        """Whether all of its statements begin like those that read."""
        return all(word in _READS or word == "with" for word in self.first_words)


@lru_cache(maxsize=2_048)
def parse(sql: str) -> Statement:
    """Read a statement (or several).

    Raises:
        DatabaseError: It is no text.
    """
    if not isinstance(sql, str):
        raise no_statement(sql)
    pieces: list[str] = []
    names: dict[str, int] = {}
    marks = 0
    words: list[str] = []
    at_start = True
    for token in _TOKEN.finditer(sql):
        kind, text = token.lastgroup, token.group()
        if kind == "double":
            text = "?"
        elif kind == "mark":
            marks += 1
            text = f"${marks}"
        elif kind == "name":
            text = f"${names.setdefault(token.group('name'), len(names) + 1)}"
        elif kind == "end":
            at_start = True
        elif kind == "word" and at_start:
            words.append(text.lower())
            at_start = False
        pieces.append(text)
    if names and marks:
        raise UsageError("a statement has both ? and :name parameters", hint="Use one kind")
    return Statement("".join(pieces), tuple(names), marks, tuple(words))


def bind(statement: Statement, params: Sequence[Any] | Mapping[str, Any]) -> Sequence[Any]:
    """The parameters in the order of the driver's marks.

    Raises:
        UsageError: There are too many or too few.
        DatabaseError: They are no parameters at all.
    """
    if isinstance(params, Mapping):
        missing = [name for name in statement.names if name not in params]
        if missing or statement.marks:
            raise UsageError(
                f"the statement's parameter {missing[0]!r} is not given" if missing else "the parameters have names",
                hint="Write :name for each key of the dict, or give a list for ?",
            )
        return [params[name] for name in statement.names]
    if not isinstance(params, Sequence):
        raise no_params(params)
    if len(params) != statement.marks or statement.names:
        wanted = len(statement.names) or statement.marks
        raise UsageError(
            f"the statement takes {wanted} parameters, and {len(params)} are given",
            hint="Give one value for each ?, or a dict for :name",
        )
    return params


class Guard:
    """What a user's SQL may do inside a commit of the log: anything, but to the transaction and to the log itself.

    It keeps from accidents. Triggers in the database keep what is written from being changed, whoever asks.
    """

    def __init__(self, schema: str) -> None:
        name = rf'"?{re.escape(schema)}"?'
        self._changes = re.compile(
            rf"""\b(?: (?:into|update|from|truncate|table|view|index|copy|on)\s+ (?:only\s+|if\s+exists\s+)*
                 {name}\s*\.\s*"?(?:{"|".join(_OWN)})\b
               | schema\s+(?:if\s+exists\s+)?{name})""",
            re.VERBOSE | re.IGNORECASE,
        )

    def check(self, statement: Statement) -> None:
        """Refuse what would end the transaction or change the log's own tables.

        Raises:
            UsageError: It is such a statement.
        """
        for word in statement.first_words:
            if word in _CONTROL or (word not in _READS and self._changes.search(statement.text)):
                raise UsageError(
                    "this statement is not for a commit of the log",
                    hint="Leave BEGIN, COMMIT, savepoints, SET and the log's own tables to the log",
                )


_READS = {"select", "table", "values", "explain", "show"}
_OWN = ("runs", "bodies", "streams", "kinds", "tags", "appends", "catalogue", "ranges", "meta", "events")
