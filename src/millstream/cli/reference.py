"""The command's reference as Markdown, made of the same texts as its help.

``python -m millstream.cli.reference docs/reference/cli.md`` writes it; a test tells when it is out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from ..errors import MillstreamError
from .app import command
from .exits import EXIT_CODES
from .options import PLACES

_INTRODUCTION = """# The `millstream` command

<!-- Made by `python -m millstream.cli.reference docs/reference/cli.md`; change the commands' help instead. -->
"""

_OUTPUT = """## Output

Every command answers on stdout; errors, remarks and progress go to stderr.

| `--output` | |
|---|---|
| `table` | for looking at: cut to fit the width, and to 50 rows unless told otherwise; the default on a terminal |
| `ndjson` | one JSON object a line, written as it comes; the default in a pipe or a file |
| `json` | one JSON array (or one object, from commands that answer with one) |
| `csv` | with a header; what has parts is JSON within its cell |

An event has the fields `position`, `stream`, `version`, `type`, `time`, `data`, and where there are any `effective`,
`tags` and `metadata`. A table of fewer than 100 columns leaves these three out; `ndjson` and `json` also have the
`schema` of the data, where that is not 1. `ndjson`, `csv` and `export` need the
same memory however much there is.
"""

_ERRORS = """## Errors and exit codes

An error is one line on stderr, `error: …`, and often a second one, `hint: …`. `--debug` adds the traceback.
"""


def reference() -> str:
    """The whole page."""
    group: Any = command()
    context = group.make_context("millstream", ["read", "--help"], resilient_parsing=True)
    parts = [_INTRODUCTION, *_body(group), *_parameters(group, context), "\n"]
    parts += [
        "## Places and ranges\n\n",
        "One grammar wherever a position is given.\n\n",
        _code(_without_title(PLACES)),
    ]
    parts += [_OUTPUT, "\n", _ERRORS, "\n", *_exit_codes()]
    for words, verb, parent in commands(group, context):
        parts += [f"## millstream {' '.join(words)}\n", *_command(verb, parent, words[-1])]
    return "".join(parts).rstrip() + "\n"


def commands(group: Any, context: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """All commands, those of groups too: the words that name each, the command, the context that it stands in."""
    for name in group.list_commands(context):
        verb = group.get_command(context, name)
        if hasattr(verb, "list_commands"):
            inner = verb.make_context(name, ["-"], parent=context, resilient_parsing=True)
            yield from commands(verb, inner, (*before, name))
        else:
            yield (*before, name), verb, context


def error_codes() -> dict[int, list[str]]:
    """The codes of all errors of the library, by the exit code that they lead to."""
    import millstream

    found: dict[int, set[str]] = {}
    for name in millstream.__all__:
        public = getattr(millstream, name)
        if isinstance(public, type) and issubclass(public, MillstreamError):
            found.setdefault(public.exit_code, set()).add(public.code)
    return {code: sorted(found[code]) for code in sorted(found)}


def _exit_codes() -> Iterator[str]:
    errors = error_codes()
    yield "| exit code | meaning | errors |\n|---|---|---|\n"
    for code, meaning in EXIT_CODES.items():
        names = ", ".join(f"`{name}`" for name in errors.get(code, ()))
        yield f"| {code} | {_cell(meaning)} | {names} |\n"
    yield "\n"


def _command(verb: Any, parent: Any, name: str) -> Iterator[str]:
    context = verb.make_context(name, [], parent=parent, resilient_parsing=True)
    yield "\n" + _code(_usage(verb, context) + "\n")
    yield from _body(verb)
    yield from _parameters(verb, context)
    yield "\n"


def _usage(verb: Any, context: Any) -> str:
    words = " ".join(verb.get_usage(context).removeprefix("Usage: ").split())
    return words.replace("{", "").replace("}", "")


def _body(verb: Any) -> Iterator[str]:
    """The help's paragraphs, its examples as code; the grammar of places has a section of its own."""
    for paragraph in (verb.help or "").split("\n\n"):
        text = paragraph.replace("\b", "").replace("\\[", "[").strip("\n")
        if text == PLACES.strip():
            yield "For its places and ranges see [above](#places-and-ranges).\n\n"
        elif text.startswith("Examples:"):
            yield _code("".join(line.strip().removeprefix("$ ") + "\n" for line in text.split("\n")[1:]), "sh")
        else:
            yield f"{text}\n\n"


def _parameters(verb: Any, context: Any) -> Iterator[str]:
    rows = [(_names(param), _cell(param.help or "")) for param in verb.get_params(context)]
    if rows:
        yield "| | |\n|---|---|\n"
        yield from (f"| {names} | {text} |\n" for names, text in rows)


def _names(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"`{param.metavar or param.name.upper()}`"
    names = ", ".join(f"`{name}`" for name in sorted(param.opts, key=len, reverse=True))
    return f"{names} `{_cell(param.metavar)}`" if param.metavar else names


def _without_title(text: str) -> str:
    return "".join(line[2:] + "\n" for line in text.strip().split("\n")[1:])


def _code(text: str, language: str = "") -> str:
    return f"```{language or 'text'}\n{text}```\n\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    page = reference()
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w", encoding="utf-8") as file:
            file.write(page)
    else:
        print(page, end="")
