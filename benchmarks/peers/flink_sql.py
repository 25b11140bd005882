"""Flink SQL over a file of clicks: prints the clicks a second, without Flink's start-up and that of the job.

`python flink_sql.py WORK FILE COUNT`: what to compute, the NDJSON file, and how many clicks it has. The job runs over
the file's beginning first, and once more, warm: that is what a start costs. `python flink_sql.py WORK FILE FOLDER`
measures nothing and leaves the rows in a folder, as NDJSON.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time

from pyflink.table import EnvironmentSettings, TableEnvironment

WORKS = {
    "w1": """select `user`, window_start, count(*) as clicks from table(tumble(table clicks, descriptor(ts),
        interval '5' minutes)) where kind = 'click' group by `user`, window_start, window_end""",
    "w2": """select `user`, window_start, count(*) as clicks from table(hop(table clicks, descriptor(ts),
        interval '1' minutes, interval '5' minutes)) where kind = 'click' group by `user`, window_start, window_end""",
    "w3": """select * from (select `user`, ts, count(*) over (partition by `user` order by ts range between
        interval '5' minutes preceding and current row) as clicks from clicks where kind = 'click')
        where clicks >= 50""",
    "w4": """select `user`, ts, clicks from (select `user`, ts, kind, sum(case when kind = 'click' then 1 else 0 end)
        over (partition by `user` order by ts range between interval '10' minutes preceding and current row) as clicks
        from clicks) where kind = 'purchase' and clicks >= 3""",
    "pattern": """select * from clicks match_recognize (partition by `user` order by ts
        measures first(c.ts) as match_start, p.ts as match_end, count(c.ts) as clicks
        one row per match after match skip past last row
        pattern (c{3,} p) within interval '10' minute define c as c.kind = 'click', p as p.kind = 'purchase')""",
}


SINKS = {
    "w1": "`user` bigint, window_start timestamp(3), clicks bigint",
    "w2": "`user` bigint, window_start timestamp(3), clicks bigint",
    "w3": "`user` bigint, ts timestamp_ltz(3), clicks bigint",
    "w4": "`user` bigint, ts timestamp_ltz(3), clicks int",
    "pattern": "`user` bigint, match_start timestamp_ltz(3), match_end timestamp_ltz(3), clicks bigint",
}


def seconds(work: str, path: str, folder: str | None = None) -> float:
    """How long a job takes over a file. Its rows are dropped where no folder is given for them."""
    table = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
    table.get_config().set("parallelism.default", "1")
    table.get_config().set("table.local-time-zone", "UTC")
    table.execute_sql(f"""create table clicks (`user` bigint, kind string, ts timestamp_ltz(3),
        watermark for ts as ts - interval '2' second) with ('connector' = 'filesystem', 'path' = '{path}',
        'format' = 'json', 'json.timestamp-format.standard' = 'ISO-8601')""")
    rows = f"'filesystem', 'path' = '{folder}', 'format' = 'json'" if folder else "'blackhole'"
    table.execute_sql(f"create table sink ({SINKS[work]}) with ('connector' = {rows})")
    begin = time.perf_counter()
    table.execute_sql(f"insert into sink {WORKS[work]}").wait()
    return time.perf_counter() - begin


def main(work: str, path: str, count: int) -> None:
    few = 1_000
    with tempfile.NamedTemporaryFile("w", suffix=".ndjson") as beginning, open(path) as file:
        beginning.writelines(itertools.islice(file, few))
        beginning.flush()
        seconds(work, beginning.name)
        begun = seconds(work, beginning.name)
    took = seconds(work, path) - begun
    print((count - few) / took)


if sys.argv[3].isdecimal():
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
else:
    seconds(*sys.argv[1:])
