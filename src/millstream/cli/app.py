"""The command's parts put together, and how it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from inspect import cleandoc
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

from ..errors import MillstreamError
from . import (
    append,
    apps,
    archive,
    backup,
    cdc,
    compact,
    copy,
    flows,
    forget,
    inline,
    load,
    outbox,
    postgres,
    projection,
    query,
    read,
    restore,
    retain,
    schema,
    sql,
    streams,
    tail,
    transfer,
    trim,
    verify,
)  # fmt: skip
from .exits import silence_output, tell, tell_error
from .options import PLACES

_UsageError = typer.BadParameter.__base__
_DEMO = "millstream.demo.command"


class _Unread(Exception):
    """Nobody reads the output any more."""


class Commands(TyperGroup):
    """The group of all commands: loads the demo when it is asked for, and turns errors into exit codes."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return [*names, "demo"] if "demo" not in names and _has_demo() else names

    def get_command(self, ctx: Any, name: str) -> Any:
        if name == "demo" and name not in self.commands and _has_demo():
            self.commands[name] = _demo()
        return super().get_command(ctx, name)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _Unread from error  # typer itself would end with 1

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run a command, and exit with the code that its outcome has."""
        words = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in words[: words.index("--")] if "--" in words else "--debug" in words
        options["standalone_mode"] = False
        _replace_closed()
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # a narrow terminal encoding is no reason to fail
        sys.exit(_outcome(lambda: super(Commands, self).main(_without_debug(words), *rest, **options), debug))


def _replace_closed() -> None:
    """Input that is closed is empty, output that is closed goes nowhere: a service may be started so."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - until the process ends


def _outcome(run: Any, debug: bool) -> int:
    """The exit code of a run; its error, if there is one, is told."""
    try:
        code = run()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (_Unread, BrokenPipeError):
        silence_output()
        return 141
    except SystemExit as exit:
        if isinstance(exit.__context__, BrokenPipeError):
            silence_output()  # what rich makes of it
            return 141
        raise
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        return _told(error)


def _told(error: Exception) -> int:
    if isinstance(error, MillstreamError):
        return tell_error(error)
    if isinstance(error, cast(type, _UsageError)):
        wrong = cast(Any, error)
        path = wrong.ctx.command_path if wrong.ctx is not None else "millstream"
        tell(wrong.format_message().rstrip("."), f"See: {path} --help")
        return int(wrong.exit_code)
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else " while reading or writing"
        tell(f"{error.strerror or error}{where}")
        silence_output()
        return 1
    tell(f"{type(error).__name__}: {error}", "This is a fault of millstream's; --debug shows where it arose")
    return 1


def _without_debug(words: list[str]) -> list[str]:
    """The words with ``--debug`` first, wherever it stood before a ``--``: those who see an error add it last."""
    end = words.index("--") if "--" in words else len(words)
    rest = [word for word in words[:end] if word != "--debug"] + words[end:]
    return ["--debug", *rest] if len(rest) < len(words) else rest


def _has_demo() -> bool:
    try:
        return find_spec(_DEMO) is not None
    except ModuleNotFoundError:
        return False


def _demo() -> Any:
    """The demo's command, made of `millstream.demo.command.demo` when it is first asked for."""
    from importlib import import_module

    alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
    alone.command("demo")(import_module(_DEMO).demo)
    found = typer.main.get_command(alone)
    found.name = "demo"
    return found


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("millstream")
        except PackageNotFoundError:
            found = "unknown"
        typer.echo(f"millstream {found}")
        raise typer.Exit()


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def millstream(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. May stand anywhere.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """An append-only log of events, in one file or in PostgreSQL.

    Each command takes the log first: the path of its file, or a URL such as
    postgresql://user@host/database?schema=shop. On a terminal it answers with
    a table; in a pipe with NDJSON, one object a line; --output chooses. Times
    are in UTC. Commands that read never create or change a log.

    \bExamples:
      $ echo '{"user": 7}' | millstream append shop.db audit --type Login
      $ millstream read shop.db audit
      $ millstream tail shop.db --lines 3
      $ millstream streams shop.db
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def _add(name: str, verb: Callable[..., None], to: typer.Typer = app) -> None:
    to.command(name, help=cleandoc(verb.__doc__ or "").replace("{places}", PLACES.strip()))(verb)


_add("append", append.append)
_add("read", read.read)
_add("tail", tail.tail)
_add("streams", streams.streams)
_add("sql", sql.sql)
_add("query", query.query)
_add("import", transfer.import_)
_add("load", load.load)
_add("export", transfer.export)
_add("verify", verify.verify)
_add("backup", backup.backup)
_add("restore", restore.restore)
_add("copy", copy.copy)
_add("promote", copy.promote)
_add("compact", compact.compact)
_add("forget", forget.forget)
_add("retain", retain.retain)
_add("trim", trim.trim)
_add("archive", archive.archive)

_cdc = typer.Typer(help="Capture the changes of a database, and look after that.", rich_markup_mode="rich")
for _name in ("check", "run", "status", "verify", "doctor", "snapshot", "parked", "remove"):
    _add(_name, getattr(cdc, _name), _cdc)
app.add_typer(_cdc, name="cdc")

_projection = typer.Typer(help="Look after the read models of an app.", rich_markup_mode="rich")
for _name in ("ls", "show", "rebuild", "rollback", "retry", "skip", "pause", "resume"):
    _add(_name, getattr(projection, _name), _projection)
app.add_typer(_projection, name="projection")

_postgres = typer.Typer(help="Look after a log in PostgreSQL.", rich_markup_mode="rich")
_add("grants", postgres.grants, _postgres)
_add("status", postgres.status, _postgres)
app.add_typer(_postgres, name="postgres")

_apps = typer.Typer(help="An app of your own: run it, and see how it is.", rich_markup_mode="rich")
_add("run", apps.run, _apps)
_add("status", apps.status, _apps)
app.add_typer(_apps, name="app")

_flows = typer.Typer(
    help="Flows: whether they are right, why they say what they say, how far they are.", rich_markup_mode="rich"
)
for _name in ("ls", "check", "explain", "graph", "pause", "resume"):
    _add(_name, getattr(flows, _name), _flows)
app.add_typer(_flows, name="flow")

_commands = typer.Typer(help="Commands of an app of your own.", rich_markup_mode="rich")
_add("send", apps.send, _commands)
_add("ls", apps.ls, _commands)
app.add_typer(_commands, name="command")

_inline = typer.Typer(help="The inline projections that everyone who appends must have.", rich_markup_mode="rich")
_add("ls", inline.ls, _inline)
_add("retire", inline.retire, _inline)
app.add_typer(_inline, name="inline")

_outbox = typer.Typer(help="Messages to the outside that wait, or could not be sent.", rich_markup_mode="rich")
for _name in ("status", "ls", "retry", "skip"):
    _add(_name, getattr(outbox, _name), _outbox)
app.add_typer(_outbox, name="outbox")

_schema = typer.Typer(help="How the shapes of stored events agree with today's classes.", rich_markup_mode="rich")
_add("check", schema.check, _schema)
app.add_typer(_schema, name="schema")


def command() -> Commands:
    """The whole command."""
    return cast(Commands, typer.main.get_command(app))
