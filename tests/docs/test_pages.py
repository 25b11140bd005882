"""The runner of the documentation notices what is not as shown."""

from __future__ import annotations

import pytest
from pages import Block, blocks, run_block


def run(source: str) -> list[str]:
    return run_block(Block(10, source), {}, "page.md")


@pytest.mark.parametrize(
    "source",
    [
        "1 + 1  # -> 2",
        "print('a')  # -> a",
        "for n in range(2):\n    print(n)\n# -> 0\n# -> 1",
        "[1, 2]\n# -> [1, 2]",
        "1 / 0  # -> ZeroDivisionError: division by zero",
        "1 / 0\n# -> ZeroDivisionError: ...",
        "text = 'no # -> comment'",
        "print('not compared')",
        "None",
    ],
)
def test_what_is_as_shown_passes(source: str) -> None:
    assert run(source) == []


@pytest.mark.parametrize(
    "source",
    [
        "1 + 1  # -> 3",
        "print('a')  # -> b",
        "for n in range(2):\n    print(n)\n# -> 0",
        "x = 1  # -> 1",
        "1 + 1  # -> ZeroDivisionError: ...",
        "1 / 0  # -> ValueError: ...",
        "class A:\n    x = 1  # -> 1",
        "2\n# -> 2\n\n# a remark\n3  # -> 4",
    ],
)
def test_what_is_not_as_shown_fails(source: str) -> None:
    [difference] = run(source)
    assert difference.startswith("page.md:1")


def test_an_error_that_is_not_announced_fails() -> None:
    with pytest.raises(ZeroDivisionError):
        run("1 / 0")


def test_the_blocks_of_a_page_are_found_with_their_lines(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\nx = 1\n```\n\n```\nnot this\n```\n\n```python\ndef test_it(): ...\n```\n")
    assert [(b.line, b.source, b.holds_tests) for b in blocks(page)] == [
        (4, "x = 1\n", False),
        (12, "def test_it(): ...\n", True),
    ]
