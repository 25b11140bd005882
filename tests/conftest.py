"""What tests of several folders share: the servers, and the places where a log can be."""

from __future__ import annotations

import compileall
import os
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import psycopg
import pymysql
import pytest
from hypothesis import HealthCheck, settings

from buckets import ObjectStore
from servers import MariaDBServer, PostgresServer

_numbers = count(1)

# How long an example takes says nothing about what is tested.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    # The tests start hundreds of processes. Where Python is told to write no bytecode, each would compile the library.
    package = find_spec("millstream")
    if not hasattr(config, "workerinput") and package is not None and package.submodule_search_locations:
        compileall.compile_dir(package.submodule_search_locations[0], quiet=2, workers=0)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    # Servers are killed here, machines are not: what the system has been given is as safe as what is on the disk.
    server = PostgresServer("fsync=off", "full_page_writes=off", "max_wal_size=128MB", in_memory=True)
    yield server
    server.close()


@pytest.fixture
def postgres(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a new database, which is gone after the test."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(f"create database {name} template template0 strategy file_copy")
    yield postgres_server.url(name)
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(f"drop database {name} with (force)")


@pytest.fixture(scope="session")
def mysql_server() -> Iterator[MariaDBServer]:
    """A MariaDB; or, with ``MILLSTREAM_MYSQLD=/path/to/mysqld`` in the environment, a MySQL."""
    program = os.environ.get("MILLSTREAM_MYSQLD")
    if program is None and MariaDBServer.program is None:
        pytest.skip("there is no mariadbd: install Debian's package mariadb-server")
    with MariaDBServer(
        *(["gtid_mode=ON", "enforce_gtid_consistency=ON"] if program else []), program=program
    ) as server:
        yield server


@pytest.fixture
def mysql(mysql_server: MariaDBServer) -> Iterator[str]:
    """The URL of a new database, which is gone after the test."""
    name = f"test_{next(_numbers)}"
    with pymysql.connect(host="127.0.0.1", port=mysql_server.port, user="root") as connection:
        connection.cursor().execute(f"create database {name}")
    yield mysql_server.url(name)
    with pymysql.connect(host="127.0.0.1", port=mysql_server.port, user="root") as connection:
        connection.cursor().execute(f"drop database {name}")


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """What `ms.open` takes for a new log, in each of the places where one can be."""
    return None if request.param == "memory" else place_of(request, request.param, tmp_path)


@pytest.fixture(params=["sqlite", "postgres"])
def shared_home(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same, of the places that several processes can open and that outlast a process."""
    return place_of(request, request.param, tmp_path)


def place_of(request: pytest.FixtureRequest, kind: str, folder: Path) -> str:
    """A place for a new log: a file in the folder, or a new database."""
    return request.getfixturevalue("postgres") if kind == "postgres" else str(folder / "log.db")


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    store = ObjectStore()
    yield store
    store.close()


@pytest.fixture
def bucket(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a new bucket; credentials and endpoint are in the environment."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    return object_store.bucket()
