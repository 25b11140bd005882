"""A table at every position, against the plainest replay there is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.cdc import Change, Column, Shape, table
from millstream.cdc.past import images, rows
from millstream.cdc.values import UNCHANGED
from millstream.log.images import images_of

from .past import Made, shape

KINDS = {
    "text": st.text(max_size=3),
    "int": st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 2),
    "float": st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(["NaN", "Infinity", "-Infinity"]),
    "decimal": st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-999, max_value=999).map(str),
    "bool": st.booleans(),
    "any": st.none() | st.integers(-3, 3) | st.text(max_size=2) | st.floats(allow_nan=False, allow_infinity=False),
    "int[]": st.lists(st.integers(-3, 3), max_size=2),
}


class Model:
    """Rows by key, in JSON, and what becomes of them; the truth in the plainest Python."""

    def __init__(self) -> None:
        self.rows: dict[Any, dict[str, Any]] = {}

    def apply(self, change: Change) -> None:
        if change.operation == "TRUNCATE":
            self.rows.clear()
            return
        was = None
        if change.before is not None:
            was = self.rows.pop(change.before["id"], None)
        if change.after is not None:
            known = was or self.rows.get(change.after["id"]) or {}
            self.rows[change.after["id"]] = {
                name: known.get(name) if value == UNCHANGED else value for name, value in change.after.items()
            }


KEYS = st.integers(1, 4)


@st.composite
def histories(draw: st.DrawFn) -> tuple[Made, list[tuple[int, list[str], dict[Any, dict[str, Any]]]]]:
    """A table with some history: after each transaction its position, the columns and the rows."""
    kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=3))
    columns = [("id", "int"), *[(f"c{i}", kind) for i, kind in enumerate(kinds)]]
    made, model = Made(shape(*columns)), Model()
    seen: list[tuple[int, list[str], dict[Any, dict[str, Any]]]] = []
    fresh = len(kinds)

    def row(key: int, known: dict[str, Any] | None = None) -> dict[str, Any]:
        values: dict[str, Any] = {"id": key}
        for column in made.shape.columns[1:]:
            if known is not None and draw(st.integers(0, 3)) == 0:
                values[column.name] = UNCHANGED
            else:
                values[column.name] = draw(st.none() | KINDS[column.kind])
        return values

    def note(position: int) -> None:
        seen.append((position, list(made.shape.names), {key: dict(row) for key, row in model.rows.items()}))

    for key in draw(st.sets(KEYS)):
        change = made.change("READ", None, row(key))
        made.write(change, metadata={"snapshot": True})
        model.apply(change)
    note(made.complete())
    for _ in range(draw(st.integers(1, 6))):
        step = draw(st.sampled_from(["rows"] * 6 + ["truncate", "add", "drop", "rename"]))
        columns_now = list(made.shape.columns)
        if step == "truncate":
            change = made.change("TRUNCATE")
            model.apply(change)
            note(made.write(change))
        elif step == "add":
            kind = draw(st.sampled_from(sorted(KINDS)))
            value = draw(st.none() | KINDS[kind])
            name, fresh = f"c{fresh}", fresh + 1
            position = made.reshape(Shape((*columns_now, Column(name, kind)), ("id",)), added={name: value})
            for known in model.rows.values():
                known[name] = value
            note(position)
        elif step in ("drop", "rename") and len(columns_now) > 1:
            old = draw(st.sampled_from(columns_now[1:]))
            name, fresh = f"c{fresh}", fresh + 1
            if step == "drop":
                left = [column for column in columns_now if column is not old]
                position = made.reshape(Shape(tuple(left), ("id",)), dropped=[old.name])
            else:
                left = [Column(name, c.kind) if c is old else c for c in columns_now]
                position = made.reshape(Shape(tuple(left), ("id",)), renamed={old.name: name})
            for known in model.rows.values():
                value = known.pop(old.name, None)
                if step == "rename":
                    known[name] = value
            note(position)
        else:
            changes = []
            for _ in range(draw(st.integers(1, 5))):
                key = draw(KEYS)
                known = model.rows.get(key)
                if known is None:
                    change = made.change("INSERT", None, row(key))
                elif draw(st.integers(0, 2)) == 0:
                    change = made.change("DELETE", {"id": key})
                else:
                    moved = draw(KEYS)
                    if moved != key and moved not in model.rows:
                        change = made.change("UPDATE", {"id": key}, row(moved, known))
                    else:
                        before = draw(st.sampled_from([None, {"id": key}]))
                        change = made.change("UPDATE", before, row(key, known))
                model.apply(change)
                changes.append(change)
            note(made.write(*changes))
    return made, seen


def assert_shows(made: Made, position: int, names: list[str], rows: dict[Any, dict[str, Any]], **options: Any) -> None:
    seen = table(made.log, made.table, position=position, **options)
    assert seen.columns == names
    assert seen["id"].to_list() == sorted(rows)
    kinds = {column.name: column.kind for column in made.shape.columns}
    for known in seen.iter_rows(named=True):
        told = rows[known["id"]]
        for name in names:
            assert _plain(known[name]) == _plain(told.get(name)), (name, kinds.get(name), seen, rows)


def _plain(value: Any) -> Any:
    """A value, however it is typed: a column of SQLite's that mixes them is text, decimals are numbers."""
    if value is None or isinstance(value, list):
        return value
    try:
        number = float(value)
    except ValueError:
        return str(value)
    return "NaN" if number != number else number


@settings(max_examples=100)
@given(histories())
def test_a_table_at_every_position_is_what_a_plain_replay_gives(history: Any) -> None:
    made, seen = history
    for position, names, known in seen:
        assert_shows(made, position, names, known, use_images=False)


@settings(max_examples=60)
@given(history=histories(), order=st.randoms())
def test_images_change_no_answer(history: Any, order: Any) -> None:
    made, seen = history
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "AT_LEAST", 1)
        patch.setattr(images, "KEPT", 3)
        patch.setattr(images, "_PART_ROWS", 1)
        patch.setattr(rows, "MERGE_AT_LEAST", 1)
        steps = [*seen, *seen]
        order.shuffle(steps)
        for position, names, known in steps:
            assert_shows(made, position, names, known)


@pytest.fixture
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "AT_LEAST", 1)


def test_a_later_log_is_shown_from_its_nearest_image(small_images: None) -> None:
    made = Made(shape(("id", "int"), ("n", "int")))
    made.read({"id": 1, "n": 0})
    for n in range(1, 20):
        made.write(made.change("UPDATE", None, {"id": 1, "n": n}))
        assert table(made.log, "users").rows() == [(1, n)]
    kept = images_of(made.log, "users")
    assert len(kept) == images.KEPT
