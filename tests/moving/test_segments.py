"""A copy in a depot: segments, each whole or not there, in a folder or an object store."""

import threading
import time

import pytest
from homes import fill, pages, rows

import millstream as ms
from millstream.log.depots import Folder
from millstream.log.moving import Segments, copy, open_segments, restore


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "depot") + "/"
    return f"s3://{request.getfixturevalue('bucket')}/shop"


def test_a_log_goes_to_a_depot_and_comes_back(source, target, place):
    copy(source, Segments(place))
    found = open_segments(place)
    assert found.raw_head().head == source.store.head()
    restore(found, target, verify=True)
    assert rows(target.path) == rows(source.path)


def test_a_copy_to_a_depot_goes_on_where_it_was(source, target, place):
    for _ in range(3):
        copy(source, Segments(place))
        fill(source, 2)
    done = copy(source, Segments(place))
    assert 0 < done.events < source.head
    assert copy(source, Segments(place)).events == 0
    segments = Segments(place).segments()
    assert [each.first for each in segments] == [1, *(each.last + 1 for each in segments[:-1])]
    restore(open_segments(place), target, verify=True)
    assert target.store.head() == source.store.head()


def test_small_segments_come_back_from_any_position(source, target, place):
    depot = Segments(place)
    for page in pages(source, runs=5, known=False):
        depot.place_raw(page)
    for position in (1, source.head // 2, source.head):
        here, there = source.store.raw_header(position), Segments(place).raw_header(position)
        assert here == there
    assert Segments(place).raw_header(source.head + 1) is None
    restore(open_segments(place), target, verify=True)
    assert rows(target.path)["runs"] == rows(source.path)["runs"]


def test_append_ids_without_events_reach_the_depot_too(source, target, place):
    copy(source, Segments(place))
    source.commit([], id="later")
    copy(source, Segments(place))
    copy(source, Segments(place))
    assert len(Segments(place).segments()) == 2
    restore(open_segments(place), target)
    assert rows(target.path)["appends"] == rows(source.path)["appends"]


def test_a_depot_follows_a_log_and_says_how_far_it_is(source, place):
    stop, seen = threading.Event(), []
    depot = Segments(place)
    worker = threading.Thread(target=copy, args=(source, depot), kwargs={
        "follow": True, "every": 0.05, "progress": seen.append, "stop": stop})  # fmt: skip
    worker.start()
    for n in range(20):
        source.append("live", ms.Plain("T", {"n": n}))
        time.sleep(0.01)
    deadline = time.monotonic() + 20
    while (not seen or seen[-1].position < source.head) and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    worker.join()
    assert seen[-1].level
    assert seen[-1].lag < 10
    assert open_segments(place).raw_head().head == source.store.head()
    assert len(Segments(place).segments()) < 20  # some events share a segment


def test_a_head_that_was_lost_or_is_old_is_found_by_listing(source, tmp_path):
    folder = tmp_path / "depot"
    copy(source, Segments(str(folder)))
    old = (folder / "head.json").read_bytes()
    fill(source, 1)
    copy(source, Segments(str(folder)))
    for harm in (lambda: (folder / "head.json").write_bytes(old), (folder / "head.json").unlink):
        harm()
        assert open_segments(str(folder)).raw_head().head == source.store.head()
        assert copy(source, Segments(str(folder))).events == 0


def test_two_copies_into_one_depot_agree(source, target, tmp_path):
    first, second = Segments(str(tmp_path / "depot")), Segments(str(tmp_path / "depot"))
    first.raw_head(), second.raw_head()
    for page in pages(source, runs=7, known=False):
        first.place_raw(page)
    for page in pages(source, runs=11, known=False):
        second.place_raw(page)
    restore(open_segments(str(tmp_path / "depot")), target, verify=True)
    assert target.store.head() == source.store.head()


def test_a_copy_comes_back_where_another_ended_that_wrote_many_small_segments(source, target, tmp_path):
    ended, other = Segments(str(tmp_path / "depot")), Segments(str(tmp_path / "depot"))
    assert ended.raw_head() == other.raw_head()
    for _ in range(20):
        ended.place_raw(source.store.raw_page(ended.raw_head().head.position, limit_runs=1))
    assert ended.raw_head().head.position < source.head
    other.place_raw(source.store.raw_page(0))
    for position in range(1, source.head + 1):
        assert Segments(str(tmp_path / "depot")).raw_header(position) == source.store.raw_header(position)


def test_a_segment_that_was_changed_or_removed_is_named(source, target, tmp_path):
    depot = Segments(str(tmp_path / "depot"))
    for page in pages(source, runs=10, known=False):
        depot.place_raw(page)
    middle = depot.segments()[2]
    path = tmp_path / "depot" / middle.name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ms.DamagedLog, match="does not match its hash"):
        restore(open_segments(str(tmp_path / "depot")), target)
    path.unlink()
    with pytest.raises(ms.DamagedLog, match="no segment") as raised:
        restore(open_segments(str(tmp_path / "depot")), target)
    assert raised.value.position == middle.first
    assert target.head == middle.first - 1


def test_a_depot_of_another_log_is_refused(source, tmp_path):
    with ms.open(str(tmp_path / "other.db")) as other:
        fill(other, 1)
        copy(other, Segments(str(tmp_path / "depot")))
    with pytest.raises(ms.NotAPrefix, match="another log"):
        copy(source, Segments(str(tmp_path / "depot")))


def test_an_empty_place_is_no_copy_and_looking_there_makes_nothing(tmp_path):
    with pytest.raises(ms.NotFound):
        open_segments(str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_what_a_killed_copy_left_is_no_segment(source, tmp_path):
    copy(source, Segments(str(tmp_path / "depot")))
    [segment] = Segments(str(tmp_path / "depot")).segments()
    (tmp_path / "depot" / f"{segment.name}.123.part").write_bytes(b"half")
    assert Segments(str(tmp_path / "depot")).segments() == [segment]
    assert open_segments(str(tmp_path / "depot")).raw_head().head == source.store.head()


def test_a_copy_that_follows_outlasts_an_outage_of_its_depot(source, tmp_path):
    class Broken(Folder):
        """A folder that is gone for a while."""

        failing = 0

        def put(self, name, content):
            if self.failing:
                self.failing -= 1
                raise ms.DepotUnavailable(self.location, "it does not answer")
            super().put(name, content)

    depot, stop, seen = Broken(str(tmp_path / "depot")), threading.Event(), []
    worker = threading.Thread(target=copy, args=(source, Segments(depot)), kwargs={
        "follow": True, "every": 0.01, "progress": seen.append, "stop": stop})  # fmt: skip
    worker.start()
    while not (seen and seen[-1].level):
        time.sleep(0.01)
    depot.failing = 2
    source.append("live", ms.Plain("T", {}))
    deadline = time.monotonic() + 30
    while seen[-1].position < source.head and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    worker.join()
    assert any(step.trouble for step in seen)
    assert open_segments(str(tmp_path / "depot")).raw_head().head == source.store.head()
