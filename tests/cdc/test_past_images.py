"""Images are a cache: they may be half written, gone, or of what was trimmed, and no answer changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import millstream as ms
from millstream.cdc import drop_table_images, image, table
from millstream.cdc.past import images
from millstream.log import images as kept

from .past import Made, shape

ROWS = [{"id": n, "name": f"n{n}"} for n in range(10)]


@pytest.fixture(params=["file", "postgres"])
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Made]:
    monkeypatch.setattr(images, "_PART_ROWS", 3)
    place = str(tmp_path / "log.db") if request.param == "file" else request.getfixturevalue("postgres")
    with ms.open(place) as log:
        made = Made(shape(("id", "int"), ("name", "text")), log)
        made.read(*ROWS)
        yield made


def parts(made: Made) -> int:
    with made.log.connect() as db:
        return int(db.one(f"select count(*) as n from {db.own(kept.PARTS)}")["n"])  # type: ignore[index]


def test_an_image_is_read_in_place_of_the_changes_before_it(made: Made) -> None:
    assert image(made.log, "users").rows == 10
    # What no image would hold: were the log replayed, this row would be there.
    with made.log.transaction() as tx:
        tx.db.execute(f"delete from {tx.db.own(kept.PARTS)} where part = 3")
    assert table(made.log, "users").height == 10, "an image that lacks a part is not used"
    drop_table_images(made.log, "users")
    image(made.log, "users")
    [one] = kept.images_of(made.log, "users")
    found = images.nearest(made.log, "users", one.position)
    assert found is not None
    assert found[1].frame().equals(table(made.log, "users", use_images=False))
    assert images.nearest(made.log, "users", one.position - 1) is None


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", range(6))
def test_a_writer_that_dies_between_two_parts_leaves_nothing_that_counts(
    made: Made, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, done = made.log.commit, 0

    def dying(*args: object, **options: object) -> object:
        nonlocal done
        if done == after:
            raise Killed
        done += 1
        return commit(*args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(made.log, "commit", dying)
        with pytest.raises(Killed):
            image(made.log, "users")
    assert kept.images_of(made.log, "users") == []
    assert table(made.log, "users").height == 10
    monkeypatch.setattr(kept, "ABANDONED", -1_000_000_000)
    assert image(made.log, "users").rows == 10
    assert table(made.log, "users").height == 10


def test_what_a_dead_writer_left_is_removed_by_the_next_one(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = kept.write_image(made.log, "users", 5, 1, b"{}", [b"left"])
    assert begin
    with made.log.transaction() as tx:
        tx.db.execute(f"update {tx.db.own(kept.TABLE)} set whole = 0, began = 0")
    image(made.log, "users")
    assert parts(made) == 4
    assert len(kept.images_of(made.log, "users")) == 1


def test_an_image_that_was_dropped_while_it_was_written_is_not_kept(made: Made) -> None:
    def interrupted() -> object:
        yield b"one"
        assert kept.drop_images(made.log) == 1
        yield b"two"

    assert not kept.write_image(made.log, "users", 5, 1, b"{}", interrupted())  # type: ignore[arg-type]
    assert parts(made) == 0


def test_what_is_no_image_of_this_version_is_passed_over(made: Made) -> None:
    for about in (b"nonsense", b'{"format":99,"about":{}}'):
        kept.write_image(made.log, "users", made.log.head, 0, about, [])
    assert table(made.log, "users").height == 10


def test_trimming_takes_the_images_of_what_was_trimmed_with_it(made: Made) -> None:
    image(made.log, "users")
    made.write(made.change("UPDATE", None, {"id": 1, "name": "x"}))
    made.log.trim("users", keep=1)
    assert kept.images_of(made.log, "users") == []
    assert parts(made) == 0
    with pytest.raises(ms.Trimmed):
        table(made.log, "users")


def test_an_image_of_trimmed_changes_that_came_back_is_not_believed(made: Made) -> None:
    made.write(made.change("UPDATE", None, {"id": 1, "name": "x"}))
    made.log.trim("users", keep=1)
    kept.write_image(made.log, "users", made.log.head, 0, b"{}", [])
    assert kept.images_of(made.log, "users") == []


def test_a_log_that_is_only_read_shows_its_tables_and_keeps_nothing(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "AT_LEAST", 1)
    with ms.open(made.log.location, readonly=True) as reader:
        assert reader.table("users").height == 10
        with pytest.raises(ms.ReadOnlyLog):
            image(reader, "users")
    assert kept.images_of(made.log, "users") == []


def test_images_stay_spread_over_the_past(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "AT_LEAST", 2)
    for n in range(60):
        made.write(*[made.change("UPDATE", None, {"id": n % 10, "name": f"{n}.{i}"}) for i in range(10)])
    image(made.log, "users")
    found = [one.position for one in kept.images_of(made.log, "users")]
    assert found[-1] == made.log.head
    assert len(found) <= images.KEPT
    gaps = [b - a for a, b in zip([0, *found], found, strict=False)]
    assert max(gaps) <= 3 * made.log.head // images.KEPT
    at = found[3] + 7
    assert table(made.log, "users", position=at).equals(table(made.log, "users", position=at, use_images=False))


def test_a_compacted_stream_shows_the_same_tables(made: Made) -> None:
    positions = [made.write(made.change("UPDATE", None, {"id": n, "name": "x"})) for n in range(9)]
    before = [table(made.log, "users", position=position) for position in positions]
    assert made.log.compact("users").runs > 1
    for position, known in zip(positions, before, strict=True):
        assert table(made.log, "users", position=position).equals(known)
    assert [change.after for change in made.log.row_history("users", 3)][-1] == {"id": 3, "name": "x"}
