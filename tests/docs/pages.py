"""How the documentation is run: the Python blocks of a page, in order, in one namespace, as at a prompt.

What a page shows is checked by comments that begin with ``# ->``. They belong to the statement (of the block, not
inside another) that they follow or stand in, one for each line of what the prompt would show: what the statement
prints, and the value of an expression, if it is not None::

    log.head  # -> 3
    for event in log.read():
        print(event.type)
    # -> Opened
    # -> Deposited

An error that the page wants to show is written as the last line of its traceback, without the module::

    log.append("account-1", event, expect=7)
    # -> VersionConflict: stream 'account-1' is at version 3, not at 7 as expected...

``...`` stands for anything. A statement without such a comment has to run, and may print what it likes. A block
that defines tests (``def test_…``, ``class Test…``) is run by pytest, as a file of its own.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import doctest
import io
import re
import sys
import tokenize
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ARROW = re.compile(r"#\s?->\s?(.*)")
_FENCE = re.compile(r"^```python[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_TESTS = re.compile(r"^(?:class Test|(?:async )?def test_)", re.MULTILINE)


class Block(NamedTuple):
    """A Python block of a page."""

    line: int
    """The line of the page that its first line is."""
    source: str

    @property
    def holds_tests(self) -> bool:
        """Whether it is a test file of its own."""
        return _TESTS.search(self.source) is not None


class NotAsShown(AssertionError):
    """A page shows something else than what happens."""


def blocks(page: Path) -> list[Block]:
    """The Python blocks of a Markdown page."""
    text = page.read_text()
    return [Block(text.count("\n", 0, m.start(1)) + 1, m[1]) for m in _FENCE.finditer(text)]


def run_page(page: Path, places: Mapping[str, str] | None = None) -> None:
    """Run a page's blocks, but for those that hold tests, in the current folder.

    Args:
        places: What to put for names that lead nowhere here, such as the URL of a server.

    Raises:
        NotAsShown: The page shows something else than what happens; says where and what.
    """
    module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
    sys.modules[module.__name__] = module
    differences: list[str] = []
    try:
        for block in blocks(page):
            if not block.holds_tests:
                for name, place in (places or {}).items():
                    block = block._replace(source=block.source.replace(name, place))
                differences += run_block(block, vars(module), str(page))
    finally:
        del sys.modules[module.__name__]
    if differences:
        raise NotAsShown("\n\n".join(differences))


def run_block(block: Block, namespace: dict[str, Any], page: str) -> list[str]:
    """Run a block and compare what it gives with what its comments say.

    Returns:
        Where they differ: for each statement the page, the line, what is shown and what happens.
    """
    differences = []
    tree = ast.parse(block.source)
    shown = dict(_comments(block.source))
    ast.increment_lineno(tree, block.line - 1)
    starts = [_first_line(statement) for statement in tree.body]
    ends = [*starts[1:], sys.maxsize]
    for statement, start, end in zip(tree.body, starts, ends, strict=True):
        expected = [text for line, text in shown.items() if start <= line + block.line - 1 < end]
        actual = _run(statement, namespace, page, may_fail=bool(expected))
        wanted = "\n".join(expected) + "\n"
        if expected and not doctest.OutputChecker().check_output(wanted, actual, doctest.ELLIPSIS):
            differences.append(f"{page}:{statement.lineno}: shows\n{wanted}but gives\n{actual}")
    return differences


def _first_line(statement: ast.stmt) -> int:
    decorators = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(d.lineno for d in decorators)])


def _comments(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and (found := ARROW.match(token.string)):
            yield token.start[0], found[1].rstrip()


def _run(statement: ast.stmt, namespace: dict[str, Any], page: str, *, may_fail: bool) -> str:
    """What the prompt would show for a statement, ending with a newline."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), _showing(out):
            exec(compile(ast.Interactive([statement]), page, "single"), namespace)
    except Exception as error:
        if not may_fail:
            raise
        out.write(f"{type(error).__name__}: {error}")
    return out.getvalue().rstrip("\n") + "\n"


@contextlib.contextmanager
def _showing(out: io.StringIO) -> Iterator[None]:
    """Show values as the prompt does, without keeping the last one under ``_``."""

    def show(value: object) -> None:
        if value is not None:
            out.write(f"{value!r}\n")

    before, sys.displayhook = sys.displayhook, show
    try:
        yield
    finally:
        sys.displayhook = before
        vars(builtins).pop("_", None)
