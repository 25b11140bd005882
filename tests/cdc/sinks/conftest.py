from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import millstream as ms
from servers import RedisServer


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ms.Log]:
    with ms.open(str(tmp_path / "log.db")) as log:
        yield log


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    if RedisServer.program is None:
        pytest.skip("there is no redis-server or valkey-server here: it is in Debian's package of that name")
    server = RedisServer()
    yield server
    server.close()
