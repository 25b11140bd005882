"""SQL over streams: one query, one moment, and never one stream's rows for another's."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

import millstream as ms


@pytest.fixture
def log():
    with ms.open() as log:
        log.append("Orders", pl.DataFrame({"x": [1]}), type="T")
        log.append("orders", pl.DataFrame({"x": [2, 2]}), type="T")
        yield log


def test_streams_whose_names_differ_in_case_alone_are_not_taken_for_one_another(log):
    assert log.sql('select sum(x)::int from "Orders"').item() == 1
    assert log.sql("select sum(x)::int from orders").item() == 4
    with pytest.raises(ms.InvalidQuery, match="'Orders' and 'orders' differ in case alone"):
        log.sql('select (select sum(x) from "Orders"), (select sum(x) from orders)')
    with pytest.raises(ms.NotFound, match="'ORDERS'"):
        log.sql("select * from ORDERS")


def test_columns_whose_names_differ_in_case_alone_are_not_taken_for_one_another(log):
    log.append("pairs", pl.DataFrame({"x": [1], "X": [2]}), type="T")
    with pytest.raises(ms.InvalidQuery, match="columns of 'pairs' 'X' and 'x' differ in case alone"):
        log.sql('select "X" from pairs')


def test_a_table_may_be_named_in_any_case(log):
    with log.transaction() as tx:
        tx.db.execute("create table prices (x integer)")
        tx.db.execute("insert into prices values (7)")
    assert log.sql("select a.x + b.x from prices a join PRICES b on true").item() == 14


def test_an_answer_has_a_name_for_each_column(log):
    with pytest.raises(ms.InvalidQuery, match="two columns are named 'x'"):
        log.sql("select x, x from orders")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("delete from orders", "only queries"),
        ("", "0 statements"),
        ("select 1; select 2", "2 statements"),
        ("selec 1", "syntax error"),
    ],
)
def test_what_is_no_query_is_refused_in_plain_words(log, query, said):
    with pytest.raises(ms.InvalidQuery, match=said):
        log.sql(query)


def test_a_query_sees_all_streams_as_of_one_moment(log, monkeypatch):
    scan = log.scan

    def meanwhile(name, **options):
        log.append("orders", pl.DataFrame({"x": [100]}), type="T")
        log.append("others", pl.DataFrame({"x": [100]}), type="T")
        return scan(name, **options)

    log.append("others", pl.DataFrame({"x": [5]}), type="T")
    monkeypatch.setattr(log, "scan", meanwhile)
    query = "select (select sum(x) from orders)::int as a, (select sum(x) from others)::int as b"
    assert log.sql(query).row(0) == (4, 5)


def test_what_a_query_defines_itself_may_be_named_in_any_case(log):
    assert log.sql("with Found as (select 1 as n) select n from found").rows() == [(1,)]


def test_spans_of_time_are_durations(log):
    spans = [timedelta(days=400, microseconds=5), None, timedelta(microseconds=-1)]
    log.append("spans", pl.DataFrame({"span": spans}), type="T")
    assert log.sql("select span from spans").to_series().to_list() == spans
    assert log.sql("select span from spans where false").schema["span"] == pl.Duration("us")
    assert log.sql("select max(_time) - min(_time) as took from spans")["took"].to_list() == [timedelta(0)]
    assert log.sql("select interval 2 days + interval 1 hour as i").item() == timedelta(days=2, hours=1)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("select interval 1 month as i", "'i' is an interval of months"),
        ("select [interval 1 day] as i", "'i' is of the type list<"),
        ("select 1::union(a int, b varchar) as u", "'u' is of the type sparse_union<"),
    ],
)
def test_an_answer_that_no_frame_holds_is_refused_with_what_to_do(log, query, said):
    with pytest.raises(ms.InvalidQuery, match=f"{said}(.|\n)*::varchar"):
        log.sql(query)


def test_a_name_that_sql_cannot_say_is_refused(log):
    log.append("odd", pl.DataFrame({"a\0b": [1]}), type="T")
    with pytest.raises(ms.InvalidQuery, match="a name that SQL cannot say"):
        log.sql("select * from odd")


def test_the_zone_of_the_machine_changes_no_answer(log, monkeypatch):
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    log.append("late", pl.DataFrame({"at": [datetime(2024, 1, 15, 23, 30, tzinfo=UTC)]}), type="T")
    found = log.sql("select late.at, late.at::date as day, hour(late.at) as hour from late")
    assert found.row(0) == (datetime(2024, 1, 15, 23, 30, tzinfo=UTC), date(2024, 1, 15), 23)
    assert found.schema["at"] == pl.Datetime("us", "UTC")
