"""The log that most tests of this folder want: a new one in a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import millstream as ms


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ms.Log]:
    with ms.open(str(tmp_path / "log.db")) as log:
        yield log
