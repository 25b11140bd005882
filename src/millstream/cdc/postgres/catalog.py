"""What a captured PostgreSQL database says about its tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from ...storage.postgres.place import Place, quote_name
from .relation import Relation, RelationColumn, make_relation
from .types import QUERY, SETTINGS, UNKNOWN, Type, type_of

Connection = psycopg.Connection[dict[str, Any]]

_TABLES = """
select c.oid::int8 as id, n.nspname as schema, c.relname as name, c.relreplident as identity,
       c.relkind as kind, c.relpersistence as persistence, greatest(c.reltuples, 0)::int8 as rows,
       pg_table_size(c.oid) as size,
       exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary) as keyed,
       exists (select from pg_index i where i.indrelid = c.oid and i.indisreplident) as indexed,
       has_table_privilege(c.oid, 'SELECT') as readable
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
"""

_ALL = (
    _TABLES
    + """
  and not c.relispartition and c.relpersistence = 'p'
  and not exists (  -- a log of events in the same database is no table to capture
      select from pg_class l where l.relnamespace = n.oid and l.relname in ('runs', 'bodies', 'kinds')
      having count(*) = 3)
order by n.nspname, c.relname
"""
)

_COLUMNS = """
select a.attname as name, a.atttypid::int8 as type, format_type(a.atttypid, a.atttypmod) as type_name,
       a.attnum as number, a.attgenerated as generated, a.attnotnull as required, a.atthasdef as has_default,
       (a.attmissingval::text::text[])[1] as missing, a.atthasmissing as has_missing
from pg_attribute a
where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped order by a.attnum
"""

_KEY = """
select a.attname as name
from pg_index i cross join lateral unnest(i.indkey::int2[]) with ordinality as k (number, place)
join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number
where i.indexrelid = (
    select indexrelid from pg_index where indrelid = $1 and indisunique and indpred is null and indimmediate
    and not exists (select from unnest(indkey::int2[]) n left join pg_attribute x
        on x.attrelid = indrelid and x.attnum = n where n = 0 or not x.attnotnull)
    order by indisreplident desc, indisprimary desc, indexrelid limit 1)
and k.place <= i.indnkeyatts
order by k.place
"""


_NAMES = """
select format_type(t, m) as name from unnest($1::oid[], $2::int4[]) with ordinality as x (t, m, n) order by n
"""


_PUBLISHED = """
select attnames::text[] as names, rowfilter as condition from pg_publication_tables
where pubname = any($1) and schemaname = $2 and tablename = $3 order by pubname
"""


class SourceTable(msgspec.Struct, frozen=True):
    """A table of the source.

    Attributes:
        name: Its name as the capture gives it: with its schema, unless that is ``public``.
        identity: Its REPLICA IDENTITY: ``d``, ``f``, ``n`` or ``i``.
        rows: How many rows the planner thinks it has.
        size: Its bytes.
    """

    id: int
    schema: str
    relname: str
    identity: str
    partitioned: bool
    rows: int
    size: int
    keyed: bool
    persistent: bool
    readable: bool
    captured: str | None = None
    """The name that it was captured under, if it got another one since."""

    @property
    def name(self) -> str:
        return self.captured or table_name(self.schema, self.relname)

    @property
    def quoted(self) -> str:
        """As a statement names it."""
        return f"{quote_name(self.schema)}.{quote_name(self.relname)}"

    @property
    def tells_rows(self) -> bool:
        """Whether the stream can say which row was updated or deleted; if not, PostgreSQL refuses to do either."""
        return self.identity in "fi" or (self.identity == "d" and self.keyed)


def table_name(schema: str, name: str) -> str:
    """A table's name as a capture gives it."""
    return name if schema == "public" else f"{schema}.{name}"


def connect(place: Place) -> Connection:
    """A connection for queries, which commits each statement by itself."""
    given = str(place.conninfo.get("options", ""))
    settings = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items() if name != "client_encoding")
    conninfo = make_conninfo(**{**place.conninfo, "options": f"{given} {settings}".strip()})
    return psycopg.connect(
        conninfo, autocommit=True, row_factory=dict_row, cursor_factory=psycopg.RawCursor, prepare_threshold=None
    )


class Catalog:
    """Tables, columns, keys and types, as the database has them now."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._types: dict[int, Type] = {}

    def all_tables(self) -> list[SourceTable]:
        """Every ordinary and partitioned table of the users' schemas."""
        return [_table(row) for row in self.connection.execute(_ALL)]

    def find(self, name: str) -> SourceTable | None:
        """The table that a user calls so: ``users`` or ``sales.orders``."""
        wanted = [("public", name)]
        schema, dot, rest = name.partition(".")
        if dot:
            wanted.append((schema, rest))
        for schema, relname in wanted:
            sql = _TABLES + "and n.nspname = $1 and c.relname = $2"
            for row in self.connection.execute(sql, (schema, relname)):
                return _table(row)
        return None

    def by_id(self, id: int) -> SourceTable | None:
        """The table of an oid."""
        for row in self.connection.execute(_TABLES + "and c.oid = $1::oid", (id,)):
            return _table(row)
        return None

    def types(self, oids: Iterable[int]) -> dict[int, Type]:
        """Types by their oids; one that is gone is text."""
        wanted = set(oids)
        missing = [oid for oid in wanted if oid not in self._types]
        if missing:
            self._types.update((oid, UNKNOWN) for oid in missing)
            for row in self.connection.execute(QUERY, (missing,)):
                found = type_of(**row)
                self._types[found.oid] = found
        return {oid: self._types[oid] for oid in wanted}

    def columns(self, id: int) -> list[dict[str, Any]]:
        """All columns of a table, in its order."""
        return self.connection.execute(_COLUMNS, (id,)).fetchall()

    def key(self, id: int) -> tuple[str, ...]:
        """The columns of a table's replica identity, if that is an index, or of its primary key, or else of an index
        that is unique and without NULLs; or none."""
        return tuple(row["name"] for row in self.connection.execute(_KEY, (id,)))

    def published(self, table: SourceTable, publications: Sequence[str]) -> tuple[list[dict[str, Any]], str | None]:
        """The columns that the stream tells of a table, and the condition on its rows, if there is one."""
        columns = self.columns(table.id)
        if self.connection.info.server_version >= 150_000:
            rows = self.connection.execute(_PUBLISHED, (list(publications), table.schema, table.relname)).fetchall()
            for row in rows[:1]:
                told = set(row["names"] or ())
                return [column for column in columns if column["name"] in told], row["condition"]
        return [column for column in columns if not column["generated"]], None

    def relation(
        self, id: int, schema: str, name: str, table: str, identity: str, columns: list[tuple[str, int, int, bool]]
    ) -> Relation:
        """A relation that the stream describes.

        Args:
            columns: Name, type's oid, type's modifier, and whether it belongs to the replica identity.
        """
        types = self.types(oid for _, oid, _, _ in columns)
        named = self.connection.execute(_NAMES, ([c[1] for c in columns], [c[2] for c in columns])).fetchall()
        made = tuple(
            RelationColumn(column, types[oid], row["name"] or "unknown", flag)
            for (column, oid, _, flag), row in zip(columns, named, strict=True)
        )
        return make_relation(id, schema, name, table, identity, made, self._key_of(id, identity, made))

    def _key_of(self, id: int, identity: str, columns: tuple[RelationColumn, ...]) -> tuple[str, ...]:
        known = self.key(id)
        if known and set(known) <= {column.name for column in columns}:
            return known
        # The key was renamed meanwhile: the stream itself says what it was.
        return tuple(c.name for c in columns if c.in_identity) if identity in "di" else ()

    def relation_of(self, table: SourceTable, publications: Sequence[str]) -> Relation:
        """The relation that the stream will describe for a table, as it is now."""
        columns, condition = self.published(table, publications)
        types = self.types(column["type"] for column in columns)
        key = self.key(table.id)
        made = tuple(
            RelationColumn(c["name"], types[c["type"]], c["type_name"], table.identity == "f" or c["name"] in key)
            for c in columns
        )
        relation = make_relation(table.id, table.schema, table.relname, table.name, table.identity, made, key)
        relation.condition = condition
        return relation


def _table(row: dict[str, Any]) -> SourceTable:
    return SourceTable(
        row["id"], row["schema"], row["name"], _char(row["identity"]), _char(row["kind"]) == "p", row["rows"],
        row["size"] or 0, row["keyed"], _char(row["persistence"]) == "p", row["readable"],
    )  # fmt: skip


def _char(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
