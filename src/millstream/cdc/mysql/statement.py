"""What a statement of the binary log does to tables: the little of SQL that a capture has to understand.

A statement that is not understood for certain is told as such: its table is then looked at anew.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Literal, NamedTuple

import msgspec

from .layout import INTEGERS, Layout, LayoutColumn

Does = Literal["create", "alter", "drop", "truncate", "rename", "drop-database", "write", "other"]
Name = tuple[str, str]
"""A table: its database and itself."""


class Statement(msgspec.Struct):
    """A statement.

    Attributes:
        does: What it does; ``write`` changes rows, told as a statement instead of as rows.
        tables: The tables that it does it to.
        renamed: Old names with new ones.
        specs: Of ALTER TABLE: what it does, one by one; None if that is not understood.
        replaces: A table that is there is replaced.
    """

    does: Does
    tables: list[Name] = []
    renamed: list[tuple[Name, Name]] = []
    specs: list[list[Token]] | None = None
    replaces: bool = False


class Token(NamedTuple):
    """A word, a name in quotes, a text, or one other character.

    Attributes:
        text: What it says, without quotes; a word as it was written.
        kind: ``w``, ``q``, ``t`` or ``p``.
    """

    text: str
    kind: str

    @property
    def word(self) -> str:
        """A word in upper case; of anything else, what no word is."""
        return self.text.upper() if self.kind == "w" else f"\0{self.text}" if self.kind != "p" else self.text


_TOKENS = re.compile(
    r"""(?P<skip>\s+|--(?=\s)[^\n]*|\#[^\n]*|/\*(?!M?!)(?:.*?\*/)|/\*M?!\d*|\*/)
    |`(?P<back>(?:[^`]|``)*)`|"(?P<double>(?:[^"\\]|""|\\.)*)"|'(?P<text>(?:[^'\\]|''|\\.)*)'
    |(?P<word>[\w$@\u0080-\uffff.]*[\w$\u0080-\uffff])|(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)


def tokens_of(statement: str) -> list[Token]:
    """A statement's words; what stands in comments for servers of some version counts as well."""
    found = []
    for match in _TOKENS.finditer(statement):
        kind = match.lastgroup
        text = match[kind] if kind else ""
        if kind == "back":
            found.append(Token(text.replace("``", "`"), "q"))
        elif kind == "double":
            found.append(Token(text.replace('""', '"'), "q"))
        elif kind == "text":
            found.append(Token(text.replace("''", "'"), "t"))
        elif kind == "word":
            # a.b is a name of two parts, 1.5 is a number
            parts = text.split(".") if not re.fullmatch(r"[\d.]+", text) else [text]
            for i, part in enumerate(parts):
                if i:
                    found.append(Token(".", "p"))
                if part:
                    found.append(Token(part, "w"))
        elif kind == "other":
            found.append(Token(text, "p"))
    return found


class _Reader:
    """Walks over tokens."""

    def __init__(self, tokens: list[Token], database: str) -> None:
        self.tokens = tokens
        self.at = 0
        self.database = database

    @property
    def word(self) -> str:
        return self.tokens[self.at].word if self.at < len(self.tokens) else ""

    def skip(self, *words: str) -> bool:
        """Go on if these words come next."""
        if [token.word for token in self.tokens[self.at : self.at + len(words)]] == list(words):
            self.at += len(words)
            return True
        return False

    def name(self) -> str:
        token = self.tokens[self.at]
        self.at += 1
        return token.text

    def table(self) -> Name:
        first = self.name()
        if self.skip("."):
            return first, self.name()
        return self.database, first

    def tables(self) -> list[Name]:
        found = [self.table()]
        while self.skip(","):
            found.append(self.table())
        return found


_WRITES = {"INSERT", "UPDATE", "DELETE", "REPLACE", "LOAD", "CALL", "WITH", "DO"}


def understand(text: str, database: str) -> Statement:
    """What a statement does.

    Args:
        database: The one that names without one are meant of.
    """
    reader = _Reader(tokens_of(text), database)
    try:
        return _understood(reader)
    except IndexError:
        return Statement("other")


def _understood(r: _Reader) -> Statement:
    if r.skip("SET", "STATEMENT"):  # settings for the one statement after it
        while not r.skip("FOR"):
            r.name()
    if r.skip("CREATE"):
        replaces = r.skip("OR", "REPLACE")
        if r.skip("TEMPORARY"):
            return Statement("other")
        if r.skip("TABLE"):
            r.skip("IF", "NOT", "EXISTS")
            return Statement("create", [r.table()], replaces=replaces)
        return _of_index(r)
    if r.skip("DROP"):
        if r.skip("DATABASE") or r.skip("SCHEMA"):
            r.skip("IF", "EXISTS")
            return Statement("drop-database", [(r.name(), "")])
        if r.skip("TEMPORARY"):
            return Statement("other")
        if r.skip("TABLE") or r.skip("TABLES"):
            r.skip("IF", "EXISTS")
            return Statement("drop", r.tables())
        return _of_index(r)
    if r.skip("TRUNCATE"):
        r.skip("TABLE")
        return Statement("truncate", [r.table()])
    if r.skip("RENAME", "TABLE") or r.skip("RENAME", "TABLES"):
        return _rename(r)
    if r.skip("ALTER"):
        r.skip("ONLINE")
        r.skip("IGNORE")
        return _alter(r) if r.skip("TABLE") else Statement("other")
    if r.word == "DELETE":
        r.skip("DELETE")
        if r.skip("FROM"):
            table = r.table()
            if r.at == len(r.tokens):
                # What the server says of a MEMORY table after a restart.
                return Statement("truncate", [table])
        return Statement("write")
    return Statement("write" if r.word in _WRITES else "other")


def _of_index(r: _Reader) -> Statement:
    """CREATE INDEX and DROP INDEX can change what is a table's key."""
    words = [token.word for token in r.tokens]
    if "INDEX" not in words or "ON" not in words:
        return Statement("other")
    r.at = words.index("ON") + 1
    return Statement("alter", [r.table()])


def _rename(r: _Reader) -> Statement:
    r.skip("IF", "EXISTS")
    found = Statement("rename")
    while True:
        old = r.table()
        while not r.skip("TO"):
            r.name()
        new = r.table()
        found.renamed.append((old, new))
        if not r.skip(","):
            return found


def _alter(r: _Reader) -> Statement:
    r.skip("IF", "EXISTS")
    table = r.table()
    if r.skip("WAIT"):
        r.name()
    r.skip("NOWAIT")
    specs: list[list[Token]] = [[]]
    depth = 0
    for token in r.tokens[r.at :]:
        depth += (token.word == "(") - (token.word == ")")
        if token.word == "," and not depth:
            specs.append([])
        else:
            specs[-1].append(token)
    found = Statement("alter", [table], specs=specs)
    for spec in specs:
        s = _Reader(spec, r.database)
        if s.skip("RENAME") and s.word not in ("COLUMN", "INDEX", "KEY"):
            if not s.skip("TO"):
                s.skip("AS")
            s.skip("=")
            found.renamed.append((table, s.table()))
    return found


def renames_of(specs: list[list[Token]] | None) -> dict[str, str]:
    """The columns that an ALTER TABLE gives other names, with these."""
    found = {}
    for spec in specs or ():
        r = _Reader(spec, "")
        with suppress(IndexError):
            if r.skip("CHANGE"):
                r.skip("COLUMN")
                r.skip("IF", "EXISTS")
                old = r.name()
                found[old] = r.name()
            elif r.skip("RENAME", "COLUMN"):
                r.skip("IF", "EXISTS")
                old = r.name()
                r.skip("TO")
                found[old] = r.name()
    return {old: new for old, new in found.items() if old != new}


# --- ALTER TABLE, done to a layout ---------------------------------------------------------------------------

_ALIASES = {
    "integer": "int", "int4": "int", "int8": "bigint", "int2": "smallint", "int1": "tinyint", "middleint": "mediumint",
    "numeric": "decimal", "dec": "decimal", "fixed": "decimal", "real": "double", "float8": "double",
}  # fmt: skip
_KNOWN = {
    *INTEGERS, "decimal", "double", "float", "date", "time", "datetime", "timestamp", "year", "char", "varchar",
    "tinytext", "text", "mediumtext", "longtext", "binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob",
    "enum", "set", "json", "uuid", "inet6", "bit",
}  # fmt: skip
_TEXTS = {"char", "varchar", "tinytext", "text", "mediumtext", "longtext", "enum", "set"}
_WITHOUT_EFFECT = {
    "ENGINE", "COMMENT", "AUTO_INCREMENT", "ALGORITHM", "LOCK", "FORCE", "ROW_FORMAT", "KEY_BLOCK_SIZE",
    "STATS_PERSISTENT", "STATS_AUTO_RECALC", "DISABLE", "ENABLE", "CHECKSUM", "AVG_ROW_LENGTH", "MAX_ROWS", "MIN_ROWS",
}  # fmt: skip


class _Unknown(Exception):
    """What a specification does to columns is not known for certain."""


def altered(layout: Layout, specs: list[list[Token]], charset: str | None, mariadb: bool) -> Layout | None:
    """The layout that a table has after an ALTER TABLE; None if that is not known for certain.

    Args:
        charset: Of text for which the statement names none.
    """
    columns, key = list(layout.columns), list(layout.key)
    try:
        for spec in specs:
            _apply(_Reader(spec, ""), columns, key, charset, mariadb)
    except (_Unknown, IndexError, StopIteration):
        return None
    if not set(key) <= {column.name for column in columns}:
        return None
    return Layout(tuple(columns), tuple(key))


def _place(columns: list[LayoutColumn], name: str) -> int:
    return next(i for i, column in enumerate(columns) if column.name.lower() == name.lower())


def _apply(r: _Reader, columns: list[LayoutColumn], key: list[str], charset: str | None, mariadb: bool) -> None:
    word = r.word
    if word in _WITHOUT_EFFECT or not word:
        return
    if r.skip("ADD"):
        if r.word in ("PRIMARY", "UNIQUE", "CONSTRAINT", "PERIOD", "SYSTEM", "(") or r.skip("COLUMN", "("):
            raise _Unknown
        if r.word in ("INDEX", "KEY", "FULLTEXT", "SPATIAL", "FOREIGN", "CHECK", "PARTITION"):
            return
        r.skip("COLUMN")
        if r.skip("IF", "NOT", "EXISTS"):
            raise _Unknown
        name = r.name()
        column, after = _column(r, name, charset, mariadb)
        _insert(columns, column, after, len(columns))
    elif r.skip("DROP"):
        if r.word in ("PRIMARY", "INDEX", "KEY", "CONSTRAINT", "SYSTEM", "PERIOD"):
            raise _Unknown
        if r.word in ("FOREIGN", "CHECK", "PARTITION"):
            return
        r.skip("COLUMN")
        if r.skip("IF", "EXISTS"):
            raise _Unknown
        del columns[_place(columns, r.name())]
    elif r.skip("MODIFY") or r.skip("CHANGE"):
        r.skip("COLUMN")
        if r.skip("IF", "EXISTS"):
            raise _Unknown
        old = r.name()
        new = r.name() if word == "CHANGE" else columns[_place(columns, old)].name
        column, after = _column(r, new, charset, mariadb)
        at = _place(columns, old)
        key[:] = [new if name == columns[at].name else name for name in key]
        del columns[at]
        _insert(columns, column, after, at)
    elif r.skip("RENAME", "COLUMN"):
        at = _place(columns, r.name())
        if not r.skip("TO"):
            raise _Unknown
        new = r.name()
        key[:] = [new if name == columns[at].name else name for name in key]
        columns[at] = msgspec.structs.replace(columns[at], name=new)
    elif r.skip("ALTER"):
        return  # a default, or whether an index is visible
    elif not r.skip("RENAME", "INDEX") and not r.skip("RENAME", "KEY"):
        raise _Unknown


def _insert(columns: list[LayoutColumn], column: LayoutColumn, after: str | None, otherwise: int) -> None:
    at = otherwise if after is None else 0 if not after else _place(columns, after) + 1
    columns.insert(at, column)


def _column(r: _Reader, name: str, charset: str | None, mariadb: bool) -> tuple[LayoutColumn, str | None]:
    """A column's definition, and after which one it is put: empty for none before it, None where nothing is said."""
    base = r.name().lower()
    if base in ("bool", "boolean"):
        base, args = "tinyint", "1"
    else:
        base = _ALIASES.get(base, base)
        args = ""
        if r.skip("("):
            args = ""
            while not r.skip(")"):
                token = r.tokens[r.at]
                args += "'" + token.text.replace("'", "''") + "'" if token.kind == "t" else token.text
                r.at += 1
    if base not in _KNOWN or (base == "json" and mariadb):
        raise _Unknown
    if base == "decimal":
        precision, _, scale = args.partition(",")
        args = f"{precision or 10},{scale or 0}"
    text = f"{base}({args})" if args else base
    nullable, after, default = True, None, None
    own_charset = charset if base in _TEXTS else None
    while r.at < len(r.tokens):
        if r.skip("UNSIGNED"):
            text += " unsigned"
        elif r.skip("SIGNED") or r.skip("NULL") or r.skip("INVISIBLE"):
            continue
        elif r.skip("NOT", "NULL"):
            nullable = False
        elif r.skip("COMMENT"):
            r.name()
        elif r.skip("CHARACTER", "SET") or r.skip("CHARSET"):
            own_charset = r.name().lower()
        elif r.skip("FIRST"):
            after = ""
        elif r.skip("AFTER"):
            after = r.name()
        elif r.skip("DEFAULT"):
            token = r.tokens[r.at]
            if token.kind == "p":
                raise _Unknown
            if token.kind == "w" and token.word != "NULL" and not re.fullmatch(r"[\d.]+", token.text):
                raise _Unknown
            if token.word != "NULL":
                default = "'" + token.text.replace("'", "''") + "'" if token.kind == "t" and mariadb else token.text
            r.at += 1
        else:
            raise _Unknown
    if own_charset is None and base in _TEXTS:
        raise _Unknown
    return LayoutColumn(name, text, own_charset, nullable, default), after
