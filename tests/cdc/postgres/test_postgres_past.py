"""The past of a PostgreSQL table: at every moment what the source had then, values that it did not tell included."""

from __future__ import annotations

import random
from typing import Any

import polars as pl
import pytest

from millstream.cdc import image, row_history, table
from millstream.cdc.change import decode_change
from millstream.cdc.past import images

from .conftest import Database
from .test_postgres_types import TYPES

BIG = "repeat(md5(random()::text), 400)"
"""A value that is stored apart, so that an update of another column does not tell it."""


def step(chance: random.Random) -> str:
    one, other = chance.randint(1, 12), chance.randint(1, 12)
    return chance.choice(
        [
            f"insert into docs (id, body, n) values ({one}, {BIG}, 1) on conflict do nothing",
            f"insert into docs (id, body, n) values ({one}, null, 0) on conflict do nothing",
            f"update docs set n = n + 1 where id = {one}",
            f"update docs set n = n + 1 where id > {one}",
            f"update docs set body = {BIG} where id = {one}",
            f"update docs set body = null where id = {one}",
            f"update docs set id = {other}, n = 0 where id = {one}"
            f" and not exists (select from docs where id = {other})",
            f"update docs set id = id + 100, n = n * 2 where id = {one}"
            f" and not exists (select from docs where id = {one} + 100)",
            f"delete from docs where id in ({one}, {other})",
        ]
    )


@pytest.mark.parametrize("identity", ["default", "full", "using index docs_code"])
def test_a_table_is_at_every_moment_what_the_source_had(
    shop: Database, identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "AT_LEAST", 5)
    chance = random.Random(identity)
    shop.sql(
        "create table docs (id int primary key, body text, n numeric(12,2), code bigserial not null)",
        "create unique index docs_code on docs (code)",
        f"alter table docs replica identity {identity}",
        f"insert into docs select g, {BIG}, g from generate_series(1, 8) g",
    )
    capture = shop.capture("docs")
    seen: list[tuple[int, list[str], list[tuple[Any, ...]]]] = []
    for turn in range(14):
        if turn == 5:
            shop.sql("alter table docs add column note text default 'none'")
        if turn == 8:
            shop.sql("alter table docs rename column note to remark")
        if turn == 10:
            shop.sql("truncate docs")
        if turn:
            shop.together(*[step(chance) for _ in range(chance.randint(1, 6))])
            shop.together(f"insert into docs (id, body, n) values ({200 + turn}, {BIG}, {turn})")
        capture.catch_up(shop.log)
        columns = [c for (c,) in shop.rows("select attname from pg_attribute where attrelid = 'docs'::regclass"
                                           " and attnum > 0 and not attisdropped order by attnum")]  # fmt: skip
        seen.append((shop.log.head, columns, shop.rows("select * from docs order by id")))
    chance.shuffle(seen)
    for position, columns, rows in seen:
        for use_images in (True, False):
            found = table(shop.log, "docs", position=position, use_images=use_images)
            assert found.columns == columns
            assert found.sort("id").rows() == rows


def test_every_type_is_shown_as_the_log_tells_it_and_the_same_from_an_image(shop: Database) -> None:
    shop.sql(
        "create type mood as enum ('happy', 'so so')",
        "create domain price as numeric(10,2) check (value > 0)",
        "create type place as (name text, floor int)",
    )
    columns, values = ["id int primary key"], []
    for type, examples in TYPES.items():
        for text, _ in examples:
            columns.append(f"c{len(columns)} {type}")
            values.append(f"({text})::{type}")
    shop.sql(f"create table every ({', '.join(columns)})", f"insert into every values (1, {', '.join(values)})")
    capture = shop.capture("every")
    capture.catch_up(shop.log)
    shop.sql(f"insert into every values (2, {', '.join(values)})", "insert into every values (3)")
    capture.catch_up(shop.log)
    found = table(shop.log, "every")
    [told] = [
        decode_change(e.event, e.run.schema).after  # type: ignore[arg-type]
        for e in shop.log.read("every", types=["Change"])
        if e.data["after"]["id"] == 2
    ]
    [raw] = [e.data["after"] for e in shop.log.read("every", types=["Change"]) if e.data["after"]["id"] == 2]
    assert told is not None
    for name in found.columns[1:]:
        first, second, third = found[name].to_list()
        assert (repr(first), third) == (repr(second), None), name
        as_text = found[name].dtype == pl.String and isinstance(raw[name], str)
        if as_text or found[name].dtype == pl.List(pl.String):
            assert second == raw[name], name
        elif found[name].dtype != pl.String:
            assert repr(second) == repr(told[name]) or second == told[name], name
    image(shop.log, "every")
    assert table(shop.log, "every").equals(found)


def test_the_history_of_a_row_has_what_its_updates_did_not_tell(shop: Database) -> None:
    shop.sql("create table docs (id int primary key, body text, n int)", f"insert into docs values (1, {BIG}, 0)")
    capture = shop.capture("docs")
    capture.catch_up(shop.log)
    [(body,)] = shop.rows("select body from docs")
    shop.sql("update docs set n = 1", "update docs set id = 2", "delete from docs")
    capture.catch_up(shop.log)
    history = row_history(shop.log, "docs", 2)
    assert [(h.operation, h.key["id"]) for h in history] == [("READ", 1), ("UPDATE", 1), ("UPDATE", 2), ("DELETE", 2)]
    assert [h.before and h.before["n"] for h in history] == [None, 0, 1, 1]
    assert all(row["body"] == body for h in history for row in (h.before, h.after) if row is not None)
    assert [h.metadata.get("xid") is not None for h in history] == [False, True, True, True]
