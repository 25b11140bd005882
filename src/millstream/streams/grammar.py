"""Patterns in full: groups, alternatives, reluctant quantifiers, absence; and the program that finds them.

What is written::

    alternatives  sequence ( "|" sequence )*
    sequence      item+
    item          variable quantifier?  |  "(" alternatives ")" quantifier?  |  "!" variable
    quantifier    ( "+" | "*" | "?" | "{n}" | "{n,}" | "{n,m}" ) "?"?

A quantifier takes as many rows as it can, and with ``?`` behind it as few. Of alternatives the first is preferred.

The program is that of a machine that backtracks: ``ROW`` takes a row that fits a variable, ``EITHER`` goes on at one
place and comes back to another, ``NONE`` sees that no later row fits a variable, ``END`` is a match.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from enum import IntEnum
from typing import NoReturn

import msgspec

from .errors import UnsupportedPattern

MAX_VARIABLES = 62
_MAX_STEPS = 5_000
_TOKEN = re.compile(r"\s*(?:([A-Za-z_]\w*)|([()|!])|([+*?]|\{[^}]*\})(\??))")
_BRACES = re.compile(r"\{\s*(\d*)\s*(,?)\s*(\d*)\s*\}")


class Op(IntEnum):
    """What a step of a program does."""

    ROW = 0
    EITHER = 1
    GO = 2
    NONE = 3
    END = 4


Instruction = tuple[int, int, int]
"""An `Op`; the variable, or where to go; where else to go."""


class Variable(msgspec.Struct, frozen=True):
    """A row that fits a variable."""

    name: str


class Absent(msgspec.Struct, frozen=True):
    """That no row fits a variable."""

    name: str


class Sequence(msgspec.Struct, frozen=True):
    """One after the other."""

    parts: tuple[Node, ...]


class Either(msgspec.Struct, frozen=True):
    """One of several, the first that will do."""

    choices: tuple[Node, ...]


class Repeat(msgspec.Struct, frozen=True):
    """Several times the same; ``most`` None is any number."""

    part: Node
    least: int
    most: int | None
    greedy: bool


Node = Variable | Absent | Sequence | Either | Repeat


class Program(msgspec.Struct, frozen=True):
    """A pattern, ready to be looked for.

    Attributes:
        text: The pattern.
        variables: Its variables; bit i of a row's mask says that it fits the i-th.
        steps: What to do.
        first: The mask of the variables that a match may begin with.
        endless: Whether a quantifier lets a match grow without end.
        awaits: The variables that are absent at the end, which time alone decides.
    """

    text: str
    variables: tuple[str, ...]
    steps: tuple[Instruction, ...]
    first: int
    endless: bool = False
    awaits: tuple[str, ...] = ()


def compile_pattern(pattern: str, defined: Iterable[str], *, relaxed: bool) -> Program:
    """The program of a pattern.

    Raises:
        UnsupportedPattern: It is not written as above, uses what is not defined, or can have no meaning.
    """
    variables = tuple(defined)
    tree = _Parser(pattern).parse()
    used = {node.name for node in _nodes(tree) if isinstance(node, Variable | Absent)}
    for name in sorted(used.symmetric_difference(variables)):
        reason = "it has no definition" if name in used else "it is defined and not used"
        raise UnsupportedPattern(pattern, repr(name), reason, hint="Define each variable of the pattern, once")
    if len(variables) > MAX_VARIABLES:
        what = f"{len(variables)} variables"
        raise UnsupportedPattern(pattern, what, f"at most {MAX_VARIABLES} are supported", hint="Use fewer")
    if _may_be_empty(tree):
        hint = "Make one variable mandatory"
        raise UnsupportedPattern(pattern, repr(pattern), "it matches no rows at all", hint=hint)
    tree, absent = _ending(tree)
    _check(pattern, tree, absent, relaxed)
    steps: list[Instruction] = []
    _emit(pattern, tree, variables, steps)
    steps += [(Op.NONE, variables.index(name), 0) for name in absent]
    steps.append((Op.END, 0, 0))
    endless = any(isinstance(node, Repeat) and node.most is None for node in _nodes(tree))
    return Program(pattern, variables, tuple(steps), _first(steps), endless, absent)


def check_possible(pattern: str, never: Collection[str]) -> None:
    """See that a pattern may match though no row ever fits some of its variables.

    Raises:
        UnsupportedPattern: It cannot.
    """
    if not _is_possible(_Parser(pattern).parse(), never):
        names = ", ".join(map(repr, sorted(never)))
        raise UnsupportedPattern(
            pattern, names, "no row ever fits it, so the pattern never matches", hint="Give it a condition on a column"
        )


def _is_possible(node: Node, never: Collection[str]) -> bool:
    match node:
        case Variable():
            return node.name not in never
        case Sequence():
            return all(_is_possible(part, never) for part in node.parts)
        case Either():
            return any(_is_possible(choice, never) for choice in node.choices)
        case Repeat():
            return node.least == 0 or _is_possible(node.part, never)
    return True


def is_simple(pattern: str) -> bool:
    """Whether a pattern is a sequence of variables with greedy quantifiers, which is found faster."""
    return not re.search(r"[()|!]|[+*?}]\s*\?", pattern)


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.tokens: list[tuple[str, str, str, str]] = []
        at, text = 0, pattern.rstrip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                self._refuse(repr(text[at:].lstrip()[:1]), "a pattern has no such sign")
            name, sign, quantifier, reluctant = (part or "" for part in found.groups())
            self.tokens.append((name, sign, quantifier, reluctant))
            at = found.end()
        self.at = 0

    def parse(self) -> Node:
        if not self.tokens:
            self._refuse("''", "it is empty")
        tree = self._alternatives()
        if self.at < len(self.tokens):
            self._refuse("')'", "no group is open")
        return tree

    def _refuse(self, part: str, reason: str) -> NoReturn:
        raise UnsupportedPattern(
            self.pattern, part, reason, hint="Write it like 'a b+ (c | d){2,3} e*?', and !x for what must not be"
        )

    def _alternatives(self) -> Node:
        choices = [self._sequence()]
        while self._sign() == "|":
            self.at += 1
            choices.append(self._sequence())
        return choices[0] if len(choices) == 1 else Either(tuple(choices))

    def _sign(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self.at < len(self.tokens) and self._sign() not in ("|", ")"):
            parts.append(self._item())
        if not parts:
            self._refuse(repr(self._sign() or "the end"), "a variable is missing before it")
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _item(self) -> Node:
        name, sign, quantifier, _ = self.tokens[self.at]
        self.at += 1
        node: Node
        if name:
            node = Variable(name)
        elif sign == "(":
            node = self._alternatives()
            if self._sign() != ")":
                self._refuse("'('", "the group has no end")
            self.at += 1
        elif sign == "!":
            if self.at == len(self.tokens) or not self.tokens[self.at][0]:
                self._refuse("'!'", "only a variable can be absent")
            node = Absent(self.tokens[self.at][0])
            self.at += 1
        else:
            self._refuse(repr(quantifier), "there is nothing before it to repeat")
        if self.at == len(self.tokens) or not self.tokens[self.at][2]:
            return node
        _, _, quantifier, reluctant = self.tokens[self.at]
        self.at += 1
        if isinstance(node, Absent):
            self._refuse(repr(f"!{node.name}{quantifier}"), "what is absent cannot be repeated")
        if self.at < len(self.tokens) and self.tokens[self.at][2]:
            self._refuse(repr(quantifier + reluctant + self.tokens[self.at][2]), "it has two quantifiers")
        least, most = self._counts(quantifier)
        return Repeat(node, least, most, not reluctant)

    def _counts(self, quantifier: str) -> tuple[int, int | None]:
        if quantifier in ("+", "*", "?"):
            return int(quantifier == "+"), 1 if quantifier == "?" else None
        found = _BRACES.fullmatch(quantifier)
        if found is None or not (found[1] or found[3]):
            self._refuse(repr(quantifier), "the braces hold no number")
        low = int(found[1] or 0)
        high = low if not found[2] else int(found[3]) if found[3] else None
        if high is not None and (high < low or high == 0):
            self._refuse(repr(quantifier), "it allows no row")
        return low, high


def _parts(node: Node) -> tuple[Node, ...]:
    match node:
        case Sequence():
            return node.parts
        case Either():
            return node.choices
        case Repeat():
            return (node.part,)
    return ()


def _nodes(node: Node) -> Iterable[Node]:
    yield node
    for part in _parts(node):
        yield from _nodes(part)


def _may_be_empty(node: Node) -> bool:
    match node:
        case Variable():
            return False
        case Absent():
            return True
        case Sequence():
            return all(map(_may_be_empty, node.parts))
        case Either():
            return any(map(_may_be_empty, node.choices))
    return node.least == 0 or _may_be_empty(node.part)


def _ending(tree: Node) -> tuple[Node, tuple[str, ...]]:
    """What is before the absences at the end, and what is absent there."""
    parts = list(tree.parts) if isinstance(tree, Sequence) else [tree]
    absent: list[str] = []
    while isinstance(last := parts[-1], Absent):
        absent.insert(0, last.name)
        parts.pop()
    return (parts[0] if len(parts) == 1 else Sequence(tuple(parts))), tuple(absent)


def _check(pattern: str, tree: Node, absent: tuple[str, ...], relaxed: bool) -> None:
    found = [node.name for node in _nodes(tree) if isinstance(node, Absent)]
    if (found or absent) and not relaxed:
        raise UnsupportedPattern(
            pattern,
            repr(f"!{(*found, *absent)[0]}"),
            "rows that follow one another have none between them",
            hint="Say contiguity='relaxed'",
        )
    if any(isinstance(each, Absent) for each in _beginnings(tree)):
        raise UnsupportedPattern(
            pattern, repr(f"!{found[0]}"), "nothing comes before it", hint="Begin with a row that is there"
        )
    for node in _nodes(tree):
        if isinstance(node, Repeat) and _may_be_empty(node.part) and node.most != 1:
            raise UnsupportedPattern(
                pattern, "a quantifier", "it repeats what may be no row at all", hint="Write (a b?)+ as a (b | a)*"
            )


def _beginnings(node: Node) -> list[Node]:
    match node:
        case Sequence():
            return _beginnings(node.parts[0])
        case Either():
            return [each for choice in node.choices for each in _beginnings(choice)]
        case Repeat():
            return _beginnings(node.part)
    return [node]


def _emit(pattern: str, node: Node, variables: tuple[str, ...], steps: list[Instruction]) -> None:
    if len(steps) > _MAX_STEPS:
        raise UnsupportedPattern(
            pattern, "its quantifiers", f"they ask for more than {_MAX_STEPS} steps", hint="Use smaller numbers"
        )
    match node:
        case Variable():
            steps.append((Op.ROW, variables.index(node.name), 0))
        case Sequence():
            for part in node.parts:
                _emit(pattern, part, variables, steps)
        case Either():
            ends = []
            for choice in node.choices[:-1]:
                split = len(steps)
                steps.append((Op.EITHER, 0, 0))
                _emit(pattern, choice, variables, steps)
                ends.append(len(steps))
                steps.append((Op.GO, 0, 0))
                steps[split] = (Op.EITHER, split + 1, len(steps))
            _emit(pattern, node.choices[-1], variables, steps)
            for end in ends:
                steps[end] = (Op.GO, len(steps), 0)
        case Repeat():
            _emit_repeat(pattern, node, variables, steps)
        case Absent():
            pass  # a row that fits it is not passed over, so it cannot stand between


def _emit_repeat(pattern: str, node: Repeat, variables: tuple[str, ...], steps: list[Instruction]) -> None:
    for _ in range(node.least):
        _emit(pattern, node.part, variables, steps)

    def choice(split: int, end: int) -> Instruction:
        return (Op.EITHER, split + 1, end) if node.greedy else (Op.EITHER, end, split + 1)

    if node.most is None:
        split = len(steps)
        steps.append((Op.EITHER, 0, 0))
        _emit(pattern, node.part, variables, steps)
        steps.append((Op.GO, split, 0))
        steps[split] = choice(split, len(steps))
        return
    splits = []
    for _ in range(node.most - node.least):
        splits.append(len(steps))
        steps.append((Op.EITHER, 0, 0))
        _emit(pattern, node.part, variables, steps)
    for split in splits:
        steps[split] = choice(split, len(steps))


def _first(steps: list[Instruction]) -> int:
    mask, seen, ahead = 0, set(), [0]
    while ahead:
        at = ahead.pop()
        if at in seen:
            continue
        seen.add(at)
        op, one, other = steps[at]
        if op == Op.ROW:
            mask |= 1 << one
        elif op == Op.EITHER:
            ahead += [one, other]
        elif op == Op.GO:
            ahead.append(one)
    return mask
