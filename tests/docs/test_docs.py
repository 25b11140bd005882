"""The documentation runs: every Python block, every example in a docstring; and nothing public is left out.

How a page shows what its code gives is told in ``pages.py``.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest
from pages import blocks, run_page

import millstream as ms
from millstream import events, evolution

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
WITH_CODE = [page for page in PAGES if blocks(page)]

SERVER = "postgresql://app@db.example/shop"
"""Stands in the pages for a database of PostgreSQL."""

MYSQL = "mysql://app@db.example/shop"
MYSQL_ARGUMENTS = 'host="db.example", user="app", database="shop"'
"""Stand in the pages for a database of MySQL, and for what its driver connects with."""

SKIPPED_MODULES: dict[str, str] = {
    "millstream.demo": "runs the whole demo; it has tests of its own",
    "millstream.cli": "its examples are shell commands; it has tests of its own",
}
"""Modules whose docstrings are not run, each with the reason."""


def modules() -> list[ModuleType]:
    found = [ms]
    for module in pkgutil.walk_packages(ms.__path__, "millstream."):
        if not module.name.endswith("__main__") and not module.name.startswith(tuple(SKIPPED_MODULES)):
            found.append(importlib.import_module(module.name))
    return found


def public_errors() -> list[type[ms.MillstreamError]]:
    modules()

    def tree(cls: type[Any]) -> Iterator[type[Any]]:
        yield cls
        for each in cls.__subclasses__():
            yield from tree(each)

    return [
        e
        for e in tree(ms.MillstreamError)
        if e.__module__.startswith("millstream.") and ".demo." not in e.__module__ and e.__name__[0] != "_"
    ]


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a folder of its own, and with the event types of other tests as they were: a name has one class."""
    monkeypatch.chdir(tmp_path)
    tables = (events._registry, events._renamed, evolution._upcasters)
    before = [dict(table) for table in tables]
    for table in tables:
        for name in [name for name, made in table.items() if not _is_ours(made)]:
            del table[name]
    events.defined()
    yield
    for table, was in zip(tables, before, strict=True):
        table.clear()
        table.update(was)
    events.defined()


def _is_ours(made: Any) -> bool:
    return getattr(made, "function", made).__module__.startswith("millstream.")


# --- pages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs_and_gives_what_the_page_shows(page: Path, request: pytest.FixtureRequest) -> None:
    places: dict[str, str] = {}
    if any(SERVER in block.source for block in blocks(page)):
        places[SERVER] = request.getfixturevalue("postgres")
    if any(MYSQL in block.source for block in blocks(page)):
        places[MYSQL] = url = request.getfixturevalue("mysql")
        parts = urlsplit(url)
        place = {"host": parts.hostname, "port": parts.port, "user": parts.username, "database": parts.path[1:]}
        places[MYSQL_ARGUMENTS] = ", ".join(f"{name}={value!r}" for name, value in place.items())
    run_page(page, places)


@pytest.mark.parametrize(
    ("page", "source"),
    [
        pytest.param(page, block.source, id=f"{page.relative_to(ROOT)}:{block.line}")
        for page in WITH_CODE
        for block in blocks(page)
        if block.holds_tests
    ],
)
def test_the_tests_that_a_page_shows_pass(page: Path, source: str, tmp_path: Path) -> None:
    file = tmp_path / "test_page.py"
    file.write_text(source)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(file)]
    if "LogContract" in source:
        # The whole contract runs in tests/log; here a few of its tests show that the page's hooks are right.
        command += ["-k", "gapless or backwards or effect_once"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{target} is not there"


# --- docstrings ------------------------------------------------------------------------------------------


def examples() -> list[Any]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for module in modules() for test in finder.find(module, module.__name__) if test.examples]
    return [pytest.param(test, id=test.name) for test in found]


@pytest.mark.parametrize("example", examples())
def test_the_example_of_a_docstring_runs(example: doctest.DocTest) -> None:
    text: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=text.append)
    assert not result.failed, "".join(text)


# --- nothing left out ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ms.__all__, *(e.__name__ for e in public_errors())])
def test_every_public_name_has_a_docstring_of_its_own(name: str) -> None:
    public = getattr(ms, name)
    own = vars(public).get("__doc__") if isinstance(public, type) else public.__doc__
    assert own, f"ms.{name} has no docstring"
    assert inspect.cleandoc(own).split("\n")[0], f"the docstring of ms.{name} begins with an empty line"


@pytest.mark.parametrize("name", ms.__all__)
def test_every_public_name_is_mentioned_in_the_guide_or_the_reference(name: str) -> None:
    text = "\n".join(p.read_text() for folder in ("guide", "reference") for p in (ROOT / "docs" / folder).glob("*.md"))
    mentioned = rf"\bms\.{name}\b" if name[0].islower() else rf"\bms\.{name}\b|`{name}\b"
    assert re.search(mentioned, text), f"no page mentions ms.{name}"


# --- errors ----------------------------------------------------------------------------------------------

ERRORS = ROOT / "docs" / "reference" / "errors.md"
_ROW = re.compile(r"^\| *`(\w+)` *\| *`([\w-]+)` *\| *(\d+) *\| *(\d+) *\| *(.+?) *\|$", re.MULTILINE)


def test_every_error_is_listed_once_with_its_codes() -> None:
    rows = _ROW.findall(ERRORS.read_text())
    listed = {name: (code, int(status), int(exit)) for name, code, status, exit, _ in rows}
    assert len(listed) == len(rows)
    assert listed == {e.__name__: (e.code, e.http_status, e.exit_code) for e in public_errors()}


def test_every_error_can_be_caught_by_its_name_in_the_package() -> None:
    assert [e for e in public_errors() if getattr(ms, e.__name__, None) is not e] == []


def test_no_two_errors_share_a_code() -> None:
    codes = [e.code for e in public_errors()]
    assert len(set(codes)) == len(codes)
