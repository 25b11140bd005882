"""The example runs: what its README shows is what it prints, and its own tests pass."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import millstream as ms

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
README = EXAMPLES / "bank" / "README.md"
SHELL = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, as someone who has installed the package and stands beside the example."""
    plain = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS")}
    path = os.pathsep.join([str(Path(ms.__file__).parents[1]), str(EXAMPLES)])
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env={**plain, "PYTHONPATH": path}, capture_output=True, text=True, timeout=50
    )


def test_the_program_prints_what_its_page_shows(tmp_path: Path) -> None:
    shown = "".join(SHELL.findall(README.read_text()))
    calls = re.findall(r"^\$ python (.*)\n((?:(?!\$ ).*\n)*)", shown, re.MULTILINE)
    assert len(calls) == shown.count("$ ") > 5
    for words, expected in calls:
        done = run(*shlex.split(words), cwd=tmp_path)
        assert "Traceback" not in done.stderr
        assert doctest.OutputChecker().check_output(expected, done.stdout + done.stderr, doctest.ELLIPSIS), (
            f"python {words}\nshows\n{expected}but gives\n{done.stdout}{done.stderr}"
        )


def test_every_command_of_the_program_has_a_line_of_help(tmp_path: Path) -> None:
    found = run("-m", "bank", "--help", cwd=tmp_path)
    assert found.returncode == 0
    for command in ("demo", "register", "deposit", "withdraw", "transfer", "statement", "sheet", "customers", "forget"):
        assert re.search(rf"{command} +\w+", found.stdout), command


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("deposit account-1 1.005", 2, "no amount of money"),
        ("deposit account-1 5", 5, "there is no account-1"),
        ("statement account-1", 3, "account-1"),
        ("sheet --at tomorrow", 2, "tomorrow"),
    ],
)
def test_what_cannot_be_done_ends_with_a_line_and_a_code(tmp_path: Path, words: str, code: int, told: str) -> None:
    done = run("-m", "bank", *words.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_the_tests_of_the_example_pass(tmp_path: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(EXAMPLES), "-W", "error"]
    done = run("-m", "pytest", *options, "--basetemp", str(tmp_path / "own"), str(EXAMPLES / "bank"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
