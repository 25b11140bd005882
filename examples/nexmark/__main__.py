"""Runs the queries over generated events, and has DuckDB say whether the answers are right."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import timedelta

import millstream as ms

from .generator import EVENTS, fill, generate, longest
from .proof import answer, differences, side_input
from .queries import queries


def main(words: list[str]) -> int:
    """Run them; 1 if an answer is wrong."""
    rate = 10_000
    wrong = 0
    all_queries = queries(timedelta(milliseconds=longest(rate)))
    parser = argparse.ArgumentParser(prog="nexmark", description=__doc__)
    parser.add_argument("events", nargs="?", type=int, default=100_000, help="how many (default: %(default)s)")
    parser.add_argument("queries", nargs="*", metavar="query", help=f"of {', '.join(all_queries)} (default: all)")
    asked = parser.parse_args(words)
    if asked.events < EVENTS:
        parser.error(f"{asked.events} events are not of every kind; ask for {EVENTS} or more")
    if unknown := [name for name in asked.queries if name not in all_queries]:
        parser.error(f"there is no query {unknown[0]}; there are {', '.join(all_queries)}")
    with ms.open() as log:
        side_input(log)
        fill(log, generate(asked.events, rate=rate))
        print(f"{'query':8}{'rows':>12}{'seconds':>10}  as DuckDB says")
        for name, query in all_queries.items():
            if asked.queries and name not in asked.queries:
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
