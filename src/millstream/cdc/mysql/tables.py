"""What is known of each captured table: its columns, from which position on, and how its snapshot goes.

The names of columns stand in the server's catalogue, which knows the present alone, while the log is read at some
position of the past. So the columns of each table are kept beside that position, and statements that change them
are followed. A layout is taken from the catalogue between two looks at where the log ends; only changes after the
second are decoded by it, and a statement that comes between the two makes it doubtful. Where a layout cannot be known
for certain, the table is read again, and what the log of the server says of it until then is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ...conversion import ready
from ...errors import CaptureError
from ..shape import Shape
from ..source import Progress, State
from .catalog import Catalog, End
from .faults import RESYNC
from .layout import Layout, default_of, keeps_values
from .rows import Table, make_table
from .snapshot import Job, Reader
from .statement import Name, Statement, altered, renames_of, understand
from .tablemap import Misfit, TableMap, parse_table_map, schema_and_name
from .transaction import Note


class Followed(msgspec.Struct):
    """A captured table.

    Attributes:
        layout: Its columns; None when it is not there.
        known: Where the server's log ended before the layout was looked up.
        since: Only what comes after this position is told of: up to it, a snapshot has it.
        told: The shape that its rows had in the log at last.
    """

    layout: Layout | None
    known: int
    since: int
    told: Shape | None = None


class Tables:
    """The captured tables of a visit.

    Attributes:
        jobs: Those whose rows are being read.
        taken: How far the stream was taken into the log.
    """

    def __init__(self, catalog: Catalog, reader: Reader, state: State, chosen: tuple[str, ...] | None) -> None:
        self.catalog = catalog
        self.reader = reader
        self.state = state
        self.chosen = chosen
        self.followed = msgspec.convert(state.source.get("tables", {}), ready(dict[str, Followed]))
        self.told: dict[str, Shape] = {n: each.told for n, each in self.followed.items() if each.told is not None}
        self.jobs: dict[str, Job] = {}
        self.taken = 0
        self.notes: list[Note] = []
        """What is to be told before anything else."""
        self._made: dict[tuple[TableMap, Layout], Table] = {}
        self._doubted: dict[str, Layout] = {}
        self.forget: Callable[[], None] = _nothing
        """Called when what was described to the stream may not be so any more."""

    @property
    def location(self) -> str:
        """The database, for people."""
        return self.catalog.place.location

    def saved(self) -> dict[str, Any]:
        """What must be known after a restart."""
        return {
            name: msgspec.to_builtins(msgspec.structs.replace(each, told=self.told.get(name)))
            for name, each in self.followed.items()
        }

    # --- opening ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Find the tables, and begin to read those that are not in the log yet.

        Raises:
            CaptureError: One is not there, or cannot be captured.
        """
        names = self._find()
        progress = self.state.tables
        for name in list(progress):
            if name not in names:
                progress[name].restart()  # its changes are not followed now, so it is read again if it comes back
                self.followed.pop(name, None)
        for name in names:
            mine = progress.setdefault(name, Progress())
            known = self.followed.get(name)
            if known is None or (not mine.done and (known.layout is None or not known.layout.orderable)):
                mine.restart()
                self.begin(name)
            elif not mine.done and known.layout is not None:
                self._empty(name)
                self._read(name, known.layout)

    def _find(self) -> list[str]:
        there = self.catalog.tables()
        if self.chosen is None:
            names = [name for name, kind in there.items() if kind == "BASE TABLE"]
            names += [name for name in self.followed if name not in there]
            if not names:
                raise CaptureError(f"{self.location} has no table to capture", hint="Make one first")
            return names
        names = []
        for given in self.chosen:
            name = given
            if given not in there and self.catalog.server.lower:
                name = next((each for each in there if each.lower() == given.lower()), given)
            if name not in there and name not in self.followed:
                raise CaptureError(
                    f"{self.location} has no table {given!r} that may be read",
                    hint="Check its name; or GRANT SELECT ON it",
                )
            if there.get(name) == "SYSTEM VERSIONED":
                raise CaptureError(
                    f"{self.location}: table {given!r} is versioned by the server, which tells old versions as rows",
                    hint=f"ALTER TABLE {given} DROP SYSTEM VERSIONING, or leave it out of tables=",
                )
            if name in there:
                self.catalog.check_readable(name)
            names.append(name)
        return names

    # --- snapshots ----------------------------------------------------------------------------------------------

    def begin(self, name: str) -> None:
        """Look a table up, and read all of it."""
        before = self.catalog.end()
        layout = self.catalog.layout(name)
        after = self.catalog.end()
        self.cancel(name)
        progress = self.state.tables.setdefault(name, Progress())
        progress.restart()
        self.followed[name] = Followed(layout, before.position, after.position)
        self.forget()
        self._empty(name)
        if layout is None:
            progress.done = True
            return
        layout.check(name)
        progress.expected = self.catalog.expected_rows(name)
        self._read(name, layout)

    def _empty(self, name: str) -> None:
        """Say that the rows which the log has of a table are gone, if it has some: at once, since what the stream
        tells from here on may be told before the first rows are read, and stays."""
        if self.state.tables[name].again and all(note.table != name for note in self.notes):
            self.notes.append(Note(name, None))

    def noted(self) -> list[Note]:
        """What is to be told now."""
        notes, self.notes = self.notes, []
        return notes

    def cancel(self, name: str) -> None:
        """Read a table's rows no longer."""
        job = self.jobs.pop(name, None)
        if job is not None:
            job.cancelled = True

    def _read(self, name: str, layout: Layout) -> None:
        progress, keyed = self.state.tables[name], layout.orderable
        self.cancel(name)
        least = max(self.followed[name].since, self.taken)
        job = self.jobs[name] = Job(name, layout, progress.cursor if keyed else None, keyed, least)
        self.reader.add(job)

    def again(self, job: Job) -> None:
        """Read on with a job that was interrupted."""
        if self.jobs.get(job.table) is not job:
            return
        if not job.keyed:
            self.begin(job.table)
        else:
            self._read(job.table, job.layout)

    # --- what the stream tells ------------------------------------------------------------------------------------

    def describe(self, body: bytes, position: int) -> Table | None:
        """The table, with its decoders, that rows are of; None when they are not wanted."""
        schema, name = schema_and_name(body, 8)
        known = self._named((schema, name))
        if known is None:
            return None
        name, each = known
        if each.layout is None or position <= each.since:
            return Table(name, _NOTHING, _NOTHING.shape, each.since, *_NO_DECODERS)
        map = parse_table_map(body)
        made = self._made.get((map, each.layout))
        if made is None:
            try:
                made = make_table(name, each.layout, map, each.since)
            except Misfit as error:
                self.doubted(name, str(error))
                return self.describe(body, position)  # not wanted now, and to be asked for again
            if len(self._made) > 1000:
                self._made.clear()
            self._made[map, each.layout] = made
        made.since = each.since
        return made

    def doubted(self, name: str, why: str = "a value is not known") -> None:
        """A table is not what it was taken for: its columns were changed by what the server's log does not tell."""
        each = self.followed[name]
        layout = each.layout
        if layout is not None and self._doubted.get(name) == layout:
            raise CaptureError(
                f"{self.location}: the rows of table {name!r} in the server's log are not those of the table: {why}",
                hint=RESYNC,
            )
        if layout is not None:
            self._doubted[name] = layout
        self.begin(name)

    def _named(self, table: Name) -> tuple[str, Followed] | None:
        schema, name = table
        lower = self.catalog.server.lower
        database = self.catalog.place.database
        if schema != database and not (lower and schema.lower() == database.lower()):
            return None
        each = self.followed.get(name)
        if each is None and lower:
            name = next((known for known in self.followed if known.lower() == name.lower()), name)
            each = self.followed.get(name)
        return None if each is None else (name, each)

    # --- statements -------------------------------------------------------------------------------------------------

    def stated(self, database: str, text: str, position: int) -> list[Note]:
        """What a statement that ends at a position means for the log.

        Raises:
            CaptureError: It has changed rows in a way that cannot be followed.
        """
        statement = understand(text, database)
        found: list[Note] = []
        match statement.does:
            case "other":
                return []
            case "write":
                self._check_written(database, text)
            case "drop-database":
                if statement.tables[0][0] == self.catalog.place.database:
                    for name in list(self.followed):
                        found += self._dropped(name, position)
            case "rename":
                found += self._renamed(statement, position)
            case "create":
                self._created(statement, position)
            case _:
                for table in statement.tables:
                    known = self._named(table)
                    if known is None or position <= known[1].known:
                        continue
                    if position <= known[1].since:
                        self.begin(known[0])
                    elif statement.does == "drop":
                        found += self._dropped(known[0], position)
                    elif statement.does == "truncate":
                        found += self._truncated(known[0], position)
                    else:
                        found += self._altered(known[0], known[1], statement, position)
                if statement.renamed:
                    found += self._renamed(statement, position)
        return found + self.noted()

    def _check_written(self, database: str, text: str) -> None:
        ours = self.catalog.place.database
        if database != ours and ours.lower() not in text.lower():
            return
        raise CaptureError(
            f"{self.location}: rows were changed by a statement that the server's log does not tell row by row:"
            f" {text.split(None, 1)[0]} …",
            hint="Let no program SET SESSION binlog_format; then " + RESYNC,
        )

    def _dropped(self, name: str, position: int) -> list[Note]:
        each = self.followed[name]
        if position <= each.since or each.layout is None:
            return []
        self.cancel(name)
        each.layout = None
        self.forget()
        progress = self.state.tables[name]
        progress.done, progress.cursor, progress.rows, progress.again = True, None, 0, False
        return [Note(name, None)]

    def _truncated(self, name: str, position: int) -> list[Note]:
        each = self.followed[name]
        if each.layout is None:
            return []
        progress = self.state.tables[name]
        if not progress.done:
            # What was read of it is gone; what a job has read and not given yet is, too.
            progress.done, progress.cursor, progress.rows, progress.again = False, None, 0, False
            each.since = max(each.since, position)
            self.forget()
            self._read(name, each.layout)
        return [Note(name, None)]

    def _renamed(self, statement: Statement, position: int) -> list[Note]:
        found: list[Note] = []
        for old, _ in statement.renamed:
            if (known := self._named(old)) is not None and position > known[1].known:
                found += self._dropped(known[0], position)
        for _, new in statement.renamed:
            self._appeared(new, position, replaces=True)
        return found

    def _created(self, statement: Statement, position: int) -> None:
        for table in statement.tables:
            self._appeared(table, position, replaces=statement.replaces)

    def _appeared(self, table: Name, position: int, *, replaces: bool) -> None:
        """A table of a name is there, which was not, or was another one."""
        known = self._named(table)
        if known is not None:
            if position > known[1].known and (known[1].layout is None or replaces):
                self.begin(known[0])
        elif (
            self.chosen is None
            and table[0] == self.catalog.place.database
            and self.catalog.tables().get(table[1]) == "BASE TABLE"
        ):
            self.begin(table[1])

    def _altered(self, name: str, each: Followed, statement: Statement, position: int) -> list[Note]:
        old = each.layout
        if old is None:
            return []
        server = self.catalog.server
        now = self.catalog.layout(name)
        end: End = self.catalog.end()
        if end.position <= position:
            new = now
        else:
            # More has happened since, and the catalogue may show the outcome of that, too.
            specs = statement.specs
            charset = self.catalog.table_charset(name)
            new = altered(old, specs, charset, server.mariadb) if specs is not None else None
            if new is not None and now is not None and _same(new, now):
                new = now
        if new is None:
            self.begin(name)
            return []
        new.check(name)
        if new == old:
            return []
        each.layout = new
        self.forget()
        renamed = renames_of(statement.specs)
        progress = self.state.tables[name]
        if _changes_rows(old, new, renamed, server.mariadb):
            progress.again = not new.orderable
            progress.done, progress.cursor, progress.rows = False, None, 0
            self._empty(name)
        elif not progress.done and (old.key != new.key or not new.orderable):
            progress.restart()
            self._empty(name)
        if not progress.done:
            self._read(name, new)
        return [Note(name, new, renamed)]


def _same(one: Layout, other: Layout) -> bool:
    """Whether two layouts have the same columns, however they are written."""
    return [(c.name, c.shown_type, c.charset, c.nullable) for c in one.columns] == [
        (c.name, c.shown_type, c.charset, c.nullable) for c in other.columns
    ]


def _changes_rows(old: Layout, new: Layout, renamed: dict[str, str], mariadb: bool) -> bool:
    """Whether rows that are there have values now that follow from none that the log has."""
    was = {renamed.get(column.name, column.name): column for column in old.columns}
    for column in new.columns:
        if column.name not in was:
            if not default_of(column, mariadb)[0]:
                return True
        elif not keeps_values(was[column.name], column):
            return True
    return False


_NOTHING = Layout(())


def _nothing() -> None:
    pass


def _no_rows(b: bytes, p: int, e: int, time: bytes) -> list[bytes]:
    return []


_NO_DECODERS = (_no_rows, _no_rows, _no_rows)
