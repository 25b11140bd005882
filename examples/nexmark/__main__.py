"""Runs the queries over generated events, and has DuckDB say whether the answers are right.

python -m nexmark [events] [query ...]
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta

import millstream as ms

from .generator import fill, generate, longest
from .proof import answer, differences, side_input
from .queries import queries


def main(words: list[str]) -> int:
    """Run them; 1 if an answer is wrong."""
    events = int(words[0]) if words else 100_000
    rate = 10_000
    wrong = 0
    with ms.open() as log:
        side_input(log)
        fill(log, generate(events, rate=rate))
        print(f"{'query':8}{'rows':>12}{'seconds':>10}  as DuckDB says")
        for name, query in queries(timedelta(milliseconds=longest(rate))).items():
            if words[1:] and name not in words[1:]:
                continue
            began = time.perf_counter()
            given = query.flow.over(log)
            took = time.perf_counter() - began
            missing, excess = differences(log, name, answer(query, given))
            wrong += bool(missing.height or excess.height)
            said = (
                f"no: {missing.height} missing, {excess.height} in excess" if missing.height or excess.height else "yes"
            )
            print(f"{name:8}{given.height:>12,}{took:>10.2f}  {said}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
