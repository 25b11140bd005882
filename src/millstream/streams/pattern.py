"""Patterns: what ``match`` accepts, and the automaton that it becomes.

A pattern is a sequence of variables, each with a quantifier: ``a``, ``a+``, ``a*``, ``a?``, ``a{3}``,
``a{3,}``, ``a{2,5}``. Quantifiers are greedy. A match is what a regular expression would find in the rows
of a key, read in order of time: it begins as early as it can, and then takes as many rows as the
quantifiers, from left to right, prefer. A row may fit several variables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from .errors import UnsupportedPattern

MAX_VARIABLES = 7
"""The eighth bit of a row's mask marks where a key's rows are done with."""

_MAX_ITEMS = 1_000
_ITEM = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:([+*?])|\{\s*(\d*)\s*(,?)\s*(\d*)\s*\})?")
_ACCEPT = -1


class Element(msgspec.Struct, frozen=True):
    """A variable with its quantifier: at least ``least`` rows, at most ``most`` (None: any number)."""

    variable: str
    least: int
    most: int | None


def parse(pattern: str, defined: Iterable[str]) -> tuple[Element, ...]:
    """The elements of a pattern.

    Raises:
        UnsupportedPattern: It uses what is not supported, a variable without a definition, or cannot match.
    """
    names = list(defined)
    elements: list[Element] = []
    at = 0
    text = pattern.rstrip()
    while at < len(text):
        found = _ITEM.match(text, at)
        if found is None:
            part = text[at:].lstrip()[:1]
            raise UnsupportedPattern(
                pattern,
                repr(part),
                "a pattern has no such sign",
                hint="Write it like 'a b+ (c | d){2,3} e*?', and !x for what must not be",
            )
        at = found.end()
        if text[at : at + 1] in ("?", "+", "*", "{"):
            raise UnsupportedPattern(
                pattern,
                repr(found.group().strip() + text[at]),
                "a second quantifier follows the first",
                hint="Give each variable one, and groups one of their own: (a{2}){3}",
            )
        elements.append(_element(pattern, found))
    if not elements:
        raise UnsupportedPattern(pattern, "''", "it is empty", hint="Name at least one variable")
    used = {element.variable for element in elements}
    for name in sorted(used.symmetric_difference(names)):
        reason = "it has no definition" if name in used else "it is defined and not used"
        raise UnsupportedPattern(pattern, repr(name), reason, hint="Define each variable of the pattern, once")
    if len(used) > MAX_VARIABLES:
        raise UnsupportedPattern(
            pattern, f"{len(used)} variables", f"at most {MAX_VARIABLES} are supported", hint="Use fewer"
        )
    if all(element.least == 0 for element in elements):
        raise UnsupportedPattern(
            pattern, repr(pattern), "it matches no rows at all", hint="Make one variable mandatory"
        )
    if sum(max(e.least, e.most or 0) + 1 for e in elements) > _MAX_ITEMS:
        raise UnsupportedPattern(
            pattern,
            "its quantifiers",
            f"they ask for some {_MAX_ITEMS} rows or more",
            hint="Use smaller numbers",
        )
    return tuple(elements)


def _element(pattern: str, found: re.Match[str]) -> Element:
    variable, sign, least, comma, most = found.groups()
    if sign is not None:
        return Element(variable, 1 if sign == "+" else 0, 1 if sign == "?" else None)
    if comma is None:
        return Element(variable, 1, 1)
    if not least and not most:
        raise UnsupportedPattern(
            pattern, repr(found.group().strip()), "the braces hold no number", hint="Write {3}, {3,} or {2,5}"
        )
    low = int(least or 0)
    high = low if not comma else int(most) if most else None
    if high is not None and (high < low or high == 0):
        raise UnsupportedPattern(
            pattern, repr(found.group().strip()), "it allows no row", hint="Write {least,most} with most >= 1"
        )
    return Element(variable, low, high)


class Automaton:
    """A pattern as a deterministic automaton over the masks of rows (bit i: variable i fits).

    A state is the list of positions that a match may be at, in order of preference; what is preferred less
    than a finished match is cut off. So a match is decided when its state is nothing but finished, or dead.
    """

    def __init__(self, elements: tuple[Element, ...], variables: tuple[str, ...]) -> None:
        self.elements = elements
        self.variables = variables
        self._items: list[tuple[int, str]] = []
        for element in elements:
            bit = 1 << variables.index(element.variable)
            self._items += [(bit, "one")] * element.least
            if element.most is None:
                self._items.append((bit, "star"))
            else:
                self._items += [(bit, "maybe")] * (element.most - element.least)
        self.least = sum(element.least for element in elements)
        """The least rows of a match."""
        self._numbers: dict[tuple[int, ...], int] = {}
        self._states: list[tuple[int, ...]] = []
        self._next: list[dict[int, int]] = []
        self.dead = self._number(())
        self.begin = self._number(tuple(self._closure(0)))
        self.done = self._number((_ACCEPT,))
        self.expression = self._expression()
        """The pattern as a regular expression over bytes, a byte per row's mask."""

    def accepts(self, state: int) -> bool:
        """Whether a match may end here."""
        return bool(self._states[state]) and self._states[state][-1] == _ACCEPT

    def step(self, state: int, mask: int) -> int:
        """The state after one more row."""
        known = self._next[state].get(mask)
        if known is not None:
            return known
        following: list[int] = []
        for item in self._states[state]:
            if item == _ACCEPT or not self._items[item][0] & mask:
                continue
            kind = self._items[item][1]
            for target in self._closure(item if kind == "star" else item + 1):
                if target not in following:
                    following.append(target)
            if following[-1] == _ACCEPT or _ACCEPT in following:
                following = following[: following.index(_ACCEPT) + 1]
                break
        number = self._number(tuple(following))
        self._next[state][mask] = number
        return number

    def _closure(self, item: int) -> list[int]:
        reached = []
        while item < len(self._items):
            reached.append(item)
            if self._items[item][1] == "one":
                return reached
            item += 1
        return [*reached, _ACCEPT]

    def _number(self, state: tuple[int, ...]) -> int:
        if state not in self._numbers:
            self._numbers[state] = len(self._states)
            self._states.append(state)
            self._next.append({})
        return self._numbers[state]

    # --- the common shape -----------------------------------------------------------------------------

    @property
    def closing(self) -> int:
        """The bit of the last variable if it closes a match for sure, else 0.

        It does when it stands only at the end, once. If then no row fits both it and another variable, every
        match ends with such a row and holds no other, so rows before one can have no part in a match after
        it.
        """
        last = self.elements[-1]
        only = all(element.variable != last.variable for element in self.elements[:-1])
        return 1 << self.variables.index(last.variable) if only and last.least == last.most == 1 else 0

    def _expression(self) -> re.Pattern[bytes]:
        text = b""
        for element in self.elements:
            bit = 1 << self.variables.index(element.variable)
            fitting = b"".join(b"\\x%02x" % mask for mask in range(128) if mask & bit)
            most = b"" if element.most is None else b"%d" % element.most
            text += b"[%s]{%d,%s}" % (fitting, element.least, most)
        return re.compile(text, re.DOTALL)
