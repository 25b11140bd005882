"""What is done to a table in PostgreSQL, so that Debezium's events of it can be compared with ours."""

from __future__ import annotations

TABLE = """
create type mood as enum ('sad', 'happy');
create table everything (
    id int primary key, small smallint, big bigint, real real, double float8, price numeric(10,2), free numeric,
    yes bool, words text, name varchar(20), padded char(5), raw bytea,
    day date, clock time, clock3 time(3), clockz timetz, stamp timestamp, stamp3 timestamp(3), stampz timestamptz,
    span interval, unique_id uuid, doc json, docb jsonb, numbers int[], texts text[], mood mood, address inet,
    range int4range, block cidr, mac macaddr, stampz3 timestamptz(3), stampz0 timestamptz(0), clockz3 timetz(3)
);
alter table everything replica identity full;
create table keyed (id int primary key, email text, note text);
alter table keyed alter note set storage external;
"""

BEFORE = """
insert into everything (id, words) values (1, 'there before');
"""
"""What is there when the capture begins."""

LATER = [
    """insert into everything values (
        2, -32768, 9223372036854775807, 1.5, 0.1, 12.50, 123456789012345678901234567890.123,
        true, 'quote " back\\slash, line
and ünïcödé 🐈', 'short', 'ab', '\\xdeadbeef00',
        '2024-02-29', '23:59:59.123456', '23:59:59.123', '12:30:00+02', '2024-01-15 10:30:00.123456',
        '2024-01-15 10:30:00.123', '2024-01-15 10:30:00.120000+02',
        '1 year 2 months 3 days 04:05:06.789', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"a": [1, 2]}', '{"b": null}',
        '{1,2,null}', '{a,"b c",null}', 'happy', '192.168.0.1/24', '[1,5)', '10.0.0.0/8', '08:00:2b:01:02:03',
        '2024-01-15 10:30:00.120+00', '2024-01-15 10:30:00+00', '12:30:00.120+00')""",
    "insert into everything (id) values (3)",
    """insert into everything (id, small, real, double, price, free, day, clock, stamp, stampz, span)
        values (4, 32767, -0.25, 1e300, -99999999.99, 0.10, '1969-12-31', '00:00', '1969-12-31 23:59:59.999999',
        '1970-01-01 00:00:00+00', '-1 day')""",
    "insert into everything (id, free, stamp, stampz, real, double) values"
    " (5, 'NaN', 'infinity', '2024-01-15 10:30:00+00', 'NaN', '-Infinity')",
    "insert into everything (id, free, stamp) values (6, 'Infinity', '-infinity'), (7, '-Infinity', null)",
    "update everything set words = 'changed', price = 13 where id = 2",
    "update everything set id = 20 where id = 2",
    "delete from everything where id = 20",
    "insert into keyed values (1, 'ann@example.com', repeat('x', 5000))",
    "update keyed set email = 'ann@example.org' where id = 1",
    "update keyed set id = 2 where id = 1",
    "delete from keyed where id = 2",
    "truncate everything",
]
"""What is done then, each in a transaction of its own."""

VARYING = {"version", "name", "ts_ms", "ts_us", "ts_ns", "sequence", "txId", "lsn", "log_position"}
"""What of ``source`` differs from run to run."""
