"""Moving in: pages of another log placed in PostgreSQL, as they are."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ..base import Head, category_of
from ..chain import FRAME_FORMAT
from ..raw import CARRIED, RawPage, RawRun, Role, State, check_bodies, check_chain, check_target
from .database import Connection
from .place import Place
from .raw import RawReader, condition

_TYPES = {"text": "text", "integer": "bigint", "blob": "bytea"}
_GUARDED = ("runs", "appends")


class Placer:
    """The statements, with the log's schema in them. Used inside a transaction that holds the writer's lock."""

    def __init__(self, place: Place, reader: RawReader) -> None:
        self._place = place
        self._s = place.quoted
        self._reader = reader

    def write_role(self, connection: Connection, role: Role | None) -> None:
        """Note what the log is; None for a home like any other. Triggers refuse the appends of any other."""
        if role is None:
            connection.execute(f"delete from {self._s}.meta where key = 'role'")
        else:
            connection.execute(
                f"insert into {self._s}.meta as m (key, value) values ('role', $1)"
                " on conflict (key) do update set value = excluded.value",
                (msgspec.json.encode(role).decode(),),
            )
        for table in _GUARDED:
            # Disabled, not dropped: to drop it would wait for all who read the table, and have all others wait, too.
            there = connection.execute(
                "select from pg_trigger where tgrelid = $1::regclass and tgname = 'role'", (f"{self._s}.{table}",)
            ).fetchone()
            if there is not None:
                does = "disable" if role is None else "enable"
                connection.execute(f"alter table {self._s}.{table} {does} trigger role")
            elif role is not None:
                connection.execute(
                    f"create trigger role before insert on {self._s}.{table}"
                    f" for each statement execute function {self._s}.refuse_appends()"
                )

    def place(self, connection: Connection, page: RawPage, source: str) -> Head:
        """See `RawTarget.place_raw`."""
        connection.execute("set local millstream.moving = 'on'")
        found = self._reader.raw_head(connection)
        wanted = check_target(found, page, self._place.location)
        role = found.role or Role("replica", source)
        if found.role is None:
            connection.execute(f"update {self._s}.meta set value = $1 where key = 'log_id'", (page.log_id,))
        if wanted:
            check_chain(page)
            self._place_bodies(connection, page)
            self._place_runs(connection, page)
        with connection.cursor() as cursor:
            cursor.executemany(
                f"insert into {self._s}.appends (id, digest, first, last, result) values ($1, $2, $3, $4, $5)"
                " on conflict (id) do nothing",
                [(each.id, each.digest, each.first, each.last, each.result) for each in page.appends],
            )
        if page.state is not None:
            self._place_state(connection, page.state)
        role = page.role_after(role)
        if found.role is None:
            self.write_role(connection, role)
        elif role != found.role:
            connection.execute(
                f"update {self._s}.meta set value = $1 where key = 'role'", (msgspec.json.encode(role).decode(),)
            )
        connection.execute(
            f"select pg_notify('millstream_' || '{self._s}.runs'::regclass::oid::text, $1)", (str(page.head.position),)
        )
        return page.head

    def _place_bodies(self, connection: Connection, page: RawPage) -> None:
        shared = page.shared
        there = {
            row[0]
            for row in connection.execute(
                f"select id from {self._s}.bodies where id = any($1::bigint[])", (sorted(shared),)
            )
        }
        check_bodies(page, there)
        new = [(ref, body) for ref, body in page.bodies.items() if ref not in there]
        with (
            connection.cursor() as cursor,
            cursor.copy(f"copy {self._s}.bodies (id, encoding, rows, bytes) from stdin (format binary)") as copy,
        ):
            copy.set_types(["int8", "int2", "int8", "bytea"])
            for ref, body in new:
                copy.write_row((ref, body.encoding, body.rows, body.data))
        if shared:
            # Numbers of shared bodies are the source's; once this is a home, its own count on from them.
            connection.execute(
                f"select setval('{self._s}.body_numbers', greatest($1, nextval('{self._s}.body_numbers')))",
                (-min(shared),),
            )

    def _place_runs(self, connection: Connection, page: RawPage) -> None:
        streams = self._stream_ids(connection, {run.stream for run in page.runs})
        kinds = self._kind_ids(connection, {(category_of(r.stream), r.type, r.schema) for r in page.runs})
        catalogue: set[tuple[int, int]] = set()
        lines: list[str] = []
        for run in page.runs:
            stream, kind = streams[run.stream], kinds[category_of(run.stream), run.type, run.schema]
            lines.append(_line(run, stream, kind))
            if run.format == FRAME_FORMAT:
                catalogue.add((stream, kind))
        columns = (
            "position, count, stream, version, kind, recorded, effective, format, body_hash, hash, metadata, body_ref,"
            " body_offset, body"
        )
        self._copy(connection, f"runs ({columns})", lines)
        self._copy(
            connection, "tags (tag, position)", (f"{_text(tag)}\t{r.position}\n" for r in page.runs for tag in r.tags)
        )
        spans = ((r.position, *span) for r in page.runs for span in r.ranges)
        self._copy(connection, "ranges (position, name, low, high)",
                   (f"{at}\t{_text(name)}\t{low}\t{high}\n" for at, name, low, high in spans))  # fmt: skip
        with connection.cursor() as cursor:
            cursor.executemany(
                f"insert into {self._s}.catalogue (stream, kind) values ($1, $2) on conflict do nothing",
                sorted(catalogue),
            )
        connection.execute(
            f"update {self._s}.streams set closed = true where id = any($1::bigint[])",
            ([streams[name] for name in page.closed],),
        )

    def _copy(self, connection: Connection, target: str, lines: Iterable[str]) -> None:
        """Rows by COPY, in the text format: a fraction of what one INSERT for each would take."""
        text = "".join(lines)
        if text:
            with connection.cursor() as cursor, cursor.copy(f"copy {self._s}.{target} from stdin") as copy:
                copy.write(text)

    def _stream_ids(self, connection: Connection, wanted: set[str]) -> dict[str, int]:
        names = sorted(wanted)
        connection.execute(
            f"insert into {self._s}.streams (name) select n from unnest($1::text[]) n"
            f" where not exists (select 1 from {self._s}.streams s where s.name = n) order by n",
            (names,),
        )
        return dict(
            connection.execute(f"select name, id from {self._s}.streams where name = any($1)", (names,)).fetchall()
        )

    def _kind_ids(self, connection: Connection, wanted: set[tuple[str, str, str]]) -> dict[tuple[str, str, str], int]:
        def known() -> dict[tuple[str, str, str], int]:
            rows = connection.execute(
                f"select category, type, schema, id from {self._s}.kinds where category = any($1)",
                (sorted({category for category, _, _ in wanted}),),
            ).fetchall()
            return {(category, type, schema): id for category, type, schema, id in rows}

        missing = sorted(wanted - known().keys())
        if missing:
            with connection.cursor() as cursor:
                cursor.executemany(f"insert into {self._s}.kinds (category, type, schema) values ($1, $2, $3)", missing)
        return known()

    def _place_state(self, connection: Connection, state: State) -> None:
        for table in CARRIED:
            rows = state.get(table.name)
            if rows is None:
                continue
            name = self._reader.table(table.name)
            columns = ", ".join(f"{column} {_TYPES[type]} not null" for column, type in table.columns)
            connection.execute(f"create table if not exists {name} ({columns}, primary key ({table.key_names}))")
            where, params = condition(table)
            connection.execute(f"delete from {name}{where}", params)
            marks = ", ".join(f"${number}" for number in range(1, len(table.columns) + 1))
            with connection.cursor() as cursor:
                cursor.executemany(f"insert into {name} ({table.names}) values ({marks})", rows)


def _line(run: RawRun, stream: int, kind: int) -> str:
    effective = "\\N" if run.effective is None else run.effective
    metadata = "\\N" if run.metadata is None else _text(run.metadata)
    body = "\\N" if run.body is None else _text(run.body)
    ref = "\\N" if run.ref is None else run.ref
    return (
        f"{run.position}\t{run.count}\t{stream}\t{run.version}\t{kind}\t{run.recorded}\t{effective}\t{run.format}"
        f"\t\\\\x{run.body_hash.hex()}\t\\\\x{run.hash.hex()}\t{metadata}\t{ref}\t{run.offset}\t{body}\n"
    )


def _text(value: str) -> str:
    """A value as COPY's text format has it."""
    if "\\" in value or "\n" in value or "\t" in value or "\r" in value:
        return value.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return value
