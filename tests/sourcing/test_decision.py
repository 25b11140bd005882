"""Decisions that span streams hold, whoever else decides at the same time."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import threading

import msgspec
import pytest

import millstream as ms


class CourseOpened(ms.Event, type="decision.CourseOpened"):
    course: str
    places: int


class Enrolled(ms.Event, type="decision.Enrolled"):
    course: str
    student: str


class Enrol(msgspec.Struct, frozen=True):
    course: str
    student: str


class CourseFull(ms.Rejected):
    """No place is left."""


MOST_COURSES = 3


@dataclasses.dataclass
class Enrolment:
    places: int = 0
    of_course: list[str] = dataclasses.field(default_factory=list)
    courses: dict[str, int] = dataclasses.field(default_factory=dict)


def evolve(state: Enrolment, event: CourseOpened | Enrolled) -> Enrolment:
    if isinstance(event, CourseOpened):
        state.places = event.places
    else:
        state.of_course.append(event.course)
        state.courses[event.student] = state.courses.get(event.student, 0) + 1
    return state


def decide(state: Enrolment, command: Enrol) -> ms.Draft:
    if state.of_course.count(command.course) >= state.places:
        raise CourseFull(f"{command.course} is full")
    if state.courses.get(command.student, 0) >= MOST_COURSES:
        raise ms.Rejected(f"{command.student} has {MOST_COURSES} courses")
    return ms.Draft(
        Enrolled(course=command.course, student=command.student),
        tags=[f"course:{command.course}", f"student:{command.student}"],
    )


def asked(command: Enrol) -> ms.Matching:
    return ms.Matching(tags=[f"course:{command.course}"]) | ms.Matching(tags=[f"student:{command.student}"])


enrol = ms.Decision(
    query=asked, initial=Enrolment, evolve=evolve, decide=decide, stream=lambda command: f"enrolment-{command.course}"
)


def opened(log: ms.Log, course: str, places: int) -> None:
    log.append(f"course-{course}", CourseOpened(course=course, places=places), tags=[f"course:{course}"])


def try_all(log: ms.Log, commands: list[Enrol]) -> None:
    for command in commands:
        with contextlib.suppress(ms.Rejected):
            enrol(log, command, attempts=200)


@pytest.fixture
def log(home):
    with ms.open(home) as log:
        yield log


def check_rules(log: ms.Log, courses: dict[str, int], students: set[str]) -> None:
    for course, places in courses.items():
        enrolled = list(log.read(matching=ms.Matching(types=[Enrolled], tags=[f"course:{course}"])))
        assert len(enrolled) == places
    for student in students:
        assert len(list(log.read(matching=ms.Matching(tags=[f"student:{student}"])))) <= MOST_COURSES


def test_a_decision_is_made_on_all_that_its_query_finds_and_nothing_else(log):
    opened(log, "c1", 1)
    opened(log, "c2", 5)
    receipt = enrol(log, Enrol("c1", "ann"))
    assert (receipt.stream, receipt.version, receipt.count) == ("enrolment-c1", 1, 1)
    with pytest.raises(CourseFull, match="c1 is full"):
        enrol(log, Enrol("c1", "bob"))
    enrol(log, Enrol("c2", "bob"))
    assert log.head == 4
    assert enrol.state(log, Enrol("c1", "ann")).courses == {"ann": 1}


def test_threads_never_overbook_a_course_nor_a_student(log):
    courses = {"c1": 4, "c2": 3}
    for course, places in courses.items():
        opened(log, course, places)
    students = [f"s{n}" for n in range(16)]
    threads = [
        threading.Thread(target=try_all, args=(log, [Enrol("c1", student), Enrol("c2", student)]))
        for student in students
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_rules(log, courses, set(students))


def test_a_student_in_a_hurry_gets_no_more_courses_than_allowed(log):
    courses = [f"c{n}" for n in range(8)]
    for course in courses:
        opened(log, course, 10)
    threads = [threading.Thread(target=try_all, args=(log, [Enrol(course, "ann")])) for course in courses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(log.read(matching=ms.Matching(tags=["student:ann"])))) == MOST_COURSES


def work(place: str, number: int) -> None:
    with ms.open(place) as log:
        try_all(log, [Enrol(course, f"s{number}-{n}") for n in range(4) for course in ("c1", "c2")])


def test_processes_never_overbook_either(shared_home):
    with ms.open(shared_home) as log:
        courses = {"c1": 5, "c2": 3}
        for course, places in courses.items():
            opened(log, course, places)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(shared_home, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(50)
        assert worker.exitcode == 0
    with ms.open(shared_home) as log:
        check_rules(log, courses, {f"s{number}-{n}" for number in range(3) for n in range(4)})
        log.verify()


class Registered(ms.Event, type="decision.Registered"):
    email: str


def register(taken: list[ms.Event], email: str) -> ms.Draft:
    if taken:
        raise ms.Rejected(f"{email} is taken")
    return ms.Draft(Registered(email=email), tags=[f"email:{email}"])


registration = ms.Decision(
    query=lambda email: ms.Matching(tags=[f"email:{email}"]), decide=register, stream=lambda email: f"user-{email}"
)


def test_without_a_state_the_decision_gets_the_events(log):
    registration(log, "ann@example.org")
    with pytest.raises(ms.Rejected, match="taken"):
        registration(log, "ann@example.org")
    registration(log, "bob@example.org")
    assert log.head == 2


def test_the_same_id_gives_the_first_receipt_though_it_would_be_rejected_now(log):
    first = registration(log, "ann@example.org", id="r1")
    assert registration(log, "ann@example.org", id="r1") == first
    with pytest.raises(ms.IdReused):
        registration(log, "bob@example.org", id="r1")
    assert log.head == 1


def test_a_rejected_decision_leaves_its_id_free(log):
    registration(log, "ann@example.org")
    with pytest.raises(ms.Rejected):
        registration(log, "ann@example.org", id="r1")
    assert registration(log, "bob@example.org", id="r1").count == 1


def test_a_decision_on_nothing_is_remembered_under_its_id(log):
    seen = []

    def nothing(events: list[ms.Event], command: str) -> None:
        seen.append(command)

    decision = ms.Decision(query=lambda command: ms.Matching(tags=[command]), decide=nothing)
    first = decision(log, "x", id="n1")
    assert (first.count, log.head) == (0, 0)
    log.append("a", ms.Plain("decision.A", {}))
    assert decision(log, "x", id="n1") == first
    assert seen == ["x"]
    assert decision(log, "x").position == 1


def test_several_streams_are_decided_in_one_commit_under_one_guard(log):
    def both(events: list[ms.Event], command: str) -> dict[str, ms.Draft]:
        if events:
            raise ms.Rejected("done")
        return {name: ms.Draft(ms.Plain("decision.Moved", {}), tags=["move:1"]) for name in ("stock-1", "stock-2")}

    move = ms.Decision(query=lambda command: ms.Matching(tags=["move:1"]), decide=both)
    assert move(log, "go").count == 2
    with pytest.raises(ms.Rejected):
        move(log, "go")
    assert [event.stream for event in log.read()] == ["stock-1", "stock-2"]


def test_what_comes_between_reading_and_appending_has_it_decided_again(log):
    calls = []

    def decide(events: list[ms.Event], command: str) -> ms.Draft:
        calls.append(len(events))
        if len(calls) == 1:
            log.append("other", ms.Plain("decision.Came", {}), tags=["t"])
        return ms.Draft(ms.Plain("decision.Decided", {}), tags=["t"])

    ms.Decision(query=lambda command: ms.Matching(tags=["t"]), decide=decide, stream="mine")(log, "go")
    assert calls == [0, 1]
    assert [event.type for event in log.read()] == ["decision.Came", "decision.Decided"]


def test_it_gives_up_with_a_clear_error(log):
    def decide(events: list[ms.Event], command: str) -> ms.Draft:
        log.append("other", ms.Plain("decision.Came", {}), tags=["t"])
        return ms.Draft(ms.Plain("decision.Decided", {}), tags=["t"])

    decision = ms.Decision(query=lambda command: ms.Matching(tags=["t"]), decide=decide, stream="mine")
    with pytest.raises(ms.Contended, match="each of the 3 times") as caught:
        decision(log, "go", attempts=3)
    assert isinstance(caught.value.__cause__, ms.ConditionFailed)
    assert (caught.value.attempts, caught.value.stream, caught.value.position) == (3, None, 3)
    assert log.version("mine") == 0


def test_a_state_that_is_a_value_begins_anew_each_time(log):
    def add(state: list[str], event: ms.Plain) -> list[str]:
        state.append(event.type)
        return state

    decision = ms.Decision(
        query=lambda command: ms.Matching(types=["decision.A"]),
        initial=[],
        evolve=add,
        decide=lambda state, command: ms.Plain("decision.A", {"seen": len(state)}),
        stream="a",
    )
    for _ in range(3):
        decision(log, "go")
    assert [event.data["seen"] for event in log.read("a")] == [0, 1, 2]


def test_a_decision_is_not_made_on_a_past_with_holes(log):
    registration(log, "ann@example.org")
    log.trim("user-ann@example.org", keep=0)
    with pytest.raises(ms.Trimmed):
        registration(log, "ann@example.org")


@pytest.mark.parametrize("outcome", [7, "Enrolled", [3], {"a": "b"}, object()])
def test_what_is_no_event_is_refused(log, outcome):
    decision = ms.Decision(query=lambda command: ms.Matching(), decide=lambda events, command: outcome, stream="a")
    with pytest.raises(ms.InvalidDecision, match="which is no event"):
        decision(log, "go")
    assert log.head == 0


def test_a_decision_that_is_put_together_wrongly_is_refused(log):
    def decide(events: list[ms.Event], command: str) -> ms.Plain:
        return ms.Plain("decision.A", {})

    with pytest.raises(ms.InvalidDecision, match="only one of initial"):
        ms.Decision(query=lambda command: ms.Matching(), decide=decide, initial=list)  # type: ignore[call-overload]
    with pytest.raises(ms.InvalidDecision, match="no function"):
        ms.Decision(query=ms.Matching(), decide=decide)  # type: ignore[call-overload]
    with pytest.raises(ms.InvalidDecision, match="without saying where"):
        ms.Decision(query=lambda command: ms.Matching(), decide=decide)(log, "go")
    with pytest.raises(ms.InvalidDecision, match="query gave"):
        ms.Decision(query=lambda command: "all", decide=decide, stream="a")(log, "go")  # type: ignore[arg-type]
    with pytest.raises(ms.UsageError, match="cannot be written as JSON"):
        ms.Decision(query=lambda command: ms.Matching(), decide=decide, stream="a")(log, object(), id="x")
