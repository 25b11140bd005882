"""``millstream postgres``: looking after a log in PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..errors import UsageError
from .options import OutputFormat, open_to_read
from .output import chosen, write_record

if TYPE_CHECKING:
    from ..storage.postgres import PostgresStore

_Url = Annotated[
    str,
    typer.Argument(metavar="URL", help="The log: postgresql://user@host/database?schema=shop.", show_default=False),
]


def grants(
    url: _Url,
    role: Annotated[str, typer.Option("--role", metavar="NAME", help="The role: a user or a group of the database.")],
    read: Annotated[bool, typer.Option("--read", help="It may read and follow all events.")] = False,
    append: Annotated[bool, typer.Option("--append", help="It may append, and read nothing.")] = False,
    consume: Annotated[
        bool, typer.Option("--consume", help="It may read, append, and run flows, captures and projections.")
    ] = False,
) -> None:
    """Print the SQL that lets a role read, append or run consumers.

    Nothing is changed and no connection is made: the owner of the schema runs
    the statements, in psql for example. Tables of read models are not part of
    the log's schema; a role that keeps some needs a place of its own for them.

    \bExamples:
      $ millstream postgres grants postgresql://localhost/shop --role web --append
      $ millstream postgres grants postgresql://localhost/shop --role bi --read
    """
    if read + append + consume != 1:
        raise UsageError("one of --read, --append and --consume is needed", hint="Say what the role is to do")
    _check(url)
    from ..storage.postgres.place import parse_url
    from ..storage.postgres.roles import Ability, grants

    ability = Ability.READ if read else Ability.APPEND if append else Ability.CONSUME
    for statement in grants(parse_url(url), role, ability, consumer_tables()):
        typer.echo(f"{statement};")


def consumer_tables() -> dict[str, str]:
    """The tables of projections, flows, captures and all else that keeps its place in a log: their columns by name."""
    from ..cdc.parking import TABLES as PARKED
    from ..cdc.worker import TABLES as CAPTURES
    from ..cqrs.delivery import TABLES as OUTBOXES
    from ..cqrs.effects import TABLES as EFFECTS
    from ..cqrs.failures import TABLES as FAILURES
    from ..cqrs.lease import TABLES as LEASES
    from ..cqrs.projection import TABLES as PROJECTIONS
    from ..cqrs.timers import TABLES as TIMERS
    from ..cqrs.versions import TABLES as VERSIONS
    from ..log.checkpoints import TABLES as CHECKPOINTS
    from ..log.images import TABLES as IMAGES
    from ..sourcing.snapshots import TABLES as SNAPSHOTS
    from ..storage.inline import TABLES as COMMITS
    from ..streams.committing import TABLES as AHEAD
    from ..streams.delivering import TABLES as FILES
    from ..streams.filesource import TABLES as LOADED
    from ..streams.store import TABLES as FLOWS

    consumers = CHECKPOINTS | PROJECTIONS | VERSIONS | FAILURES | LEASES | EFFECTS
    consumers |= FLOWS | AHEAD | FILES | LOADED | CAPTURES | PARKED | SNAPSHOTS | IMAGES | TIMERS | OUTBOXES | COMMITS
    return consumers


def status(url: _Url, output: OutputFormat = None) -> None:
    """Tell how a log in PostgreSQL is: where, how far, how large.

    The position of its last event, the bytes that its tables and indexes take,
    its schema and that schema's version, the server's version, whether that is
    a standby, and whether this role may append there.

    \bExamples:
      $ millstream postgres status postgresql://localhost/shop
      $ millstream postgres status postgresql://localhost/shop --output json
    """
    _check(url)
    with open_to_read(url) as log:
        record = {"log": log.location, "position": log.head, "bytes": log.store.size()}
        record |= cast("PostgresStore", log.store).describe()
    write_record(record, chosen(output))


def _check(url: str) -> None:
    if not url.startswith(("postgresql://", "postgres://")):
        raise UsageError(f"{url:.60} is no log in PostgreSQL", hint="Write postgresql://user@host/database?schema=shop")
    from ..log.log import require_postgres

    require_postgres()
