"""A log with one of everything, and an empty one."""

import pytest
from homes import fill

import millstream as ms


@pytest.fixture
def source(tmp_path):
    with ms.open(str(tmp_path / "source.db")) as log:
        fill(log)
        yield log


@pytest.fixture
def target(tmp_path):
    with ms.open(str(tmp_path / "target.db")) as log:
        yield log
