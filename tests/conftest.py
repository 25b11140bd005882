"""What tests of several folders share: the servers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import psycopg
import pytest

from servers import PostgresServer

_numbers = count(1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def postgres(postgres_server: PostgresServer) -> str:
    """The URL of a new database."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(f"create database {name} template template0")
    return postgres_server.url(name)
