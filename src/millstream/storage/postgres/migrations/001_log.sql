-- The log in PostgreSQL. {schema} stands for the quoted name of the schema that it lives in.
-- The tables are those of docs/format.md; what differs is said there.
create table {schema}.meta (
    key   text primary key,
    value text not null
);

create table {schema}.streams (
    id     bigint generated always as identity primary key,
    name   text collate "C" not null unique,
    closed boolean not null default false
);

create table {schema}.kinds (
    id       bigint generated always as identity primary key,
    category text collate "C" not null,
    type     text collate "C" not null,
    schema   text collate "C" not null
);
-- A frame's schema may be longer than an index takes.
create unique index kinds_whole on {schema}.kinds (category, type, md5(schema));

-- One header per run. Rows are only ever added; compaction changes body_ref, body_offset and body alone.
-- origin tells the process that wrote it whether a commit whose answer was lost has happened.
create table {schema}.runs (
    position    bigint primary key,
    count       bigint not null,
    stream      bigint not null,
    version     bigint not null,
    kind        bigint not null,
    recorded    bigint not null,
    effective   bigint,
    origin      bigint not null default 0,
    format      smallint not null,
    body_hash   bytea not null,
    hash        bytea not null,
    metadata    text,
    body_ref    bigint,
    body_offset bigint not null default 0,
    body        text
);
create unique index runs_stream on {schema}.runs (stream, version);
create index runs_kind on {schema}.runs (kind, position);
create index runs_merged on {schema}.runs (body_ref) where body_ref < 0;

-- A body that one run alone has is numbered by that run's position; those below 0 are shared.
create table {schema}.bodies (
    id       bigint primary key,
    encoding smallint not null,
    rows     bigint not null,
    bytes    bytea not null
);
-- Frames are compressed already.
alter table {schema}.bodies alter column bytes set storage external;
create sequence {schema}.body_numbers;

create table {schema}.tags (
    tag      text collate "C" not null,
    position bigint not null,
    primary key (tag, position)
);
create index tags_position on {schema}.tags (position);

create table {schema}.appends (
    id     text collate "C" primary key,
    digest bytea not null,
    first  bigint not null,
    last   bigint not null,
    result text not null
);
create index appends_last on {schema}.appends (last);

create table {schema}.catalogue (
    stream bigint not null,
    kind   bigint not null,
    primary key (stream, kind)
);

create table {schema}.ranges (
    position bigint not null,
    name     text not null,
    low      bigint not null,
    high     bigint not null,
    primary key (position, name)
);

create view {schema}.events as
select r.position, r.count, s.name as stream, r.version, k.type,
       to_timestamp(r.recorded / 1000000.0) as recorded, r.metadata, r.body
from {schema}.runs r join {schema}.streams s on s.id = r.stream join {schema}.kinds k on k.id = r.kind;

-- What is written stays: not even the owner changes or removes it by accident.
create function {schema}.refuse() returns trigger language plpgsql as $$
begin
    raise exception 'millstream: the log is append-only' using errcode = 'MS001';
end $$;
create trigger append_only before delete or truncate
    or update of position, count, stream, version, kind, recorded, effective, format, body_hash, hash, metadata
    on {schema}.runs for each statement execute function {schema}.refuse();
create trigger append_only before delete or truncate or update of id, name
    on {schema}.streams for each statement execute function {schema}.refuse();
create trigger append_only before delete or truncate or update
    on {schema}.kinds for each statement execute function {schema}.refuse();
create trigger append_only before delete or truncate or update
    on {schema}.tags for each statement execute function {schema}.refuse();
create trigger append_only before delete or truncate or update
    on {schema}.appends for each statement execute function {schema}.refuse();

-- What a log says to appends that is a copy, or has moved: triggers of this function are
-- made with its role, and disabled without one.
create function {schema}.refuse_appends() returns trigger language plpgsql as $$
begin
    if current_setting('millstream.moving', true) is distinct from 'on' then
        raise exception 'millstream: this log takes no appends'
            using errcode = 'MS004', detail = (select m.value from {schema}.meta m where m.key = 'role');
    end if;
    return null;
end $$;

-- The lock that appends are serialised by; held until the transaction ends.
create function {schema}.lock(patience text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'millstream: the transaction is not READ COMMITTED' using errcode = 'MS002';
    end if;
    -- What append returns is on disk, whatever the role or the database says.
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    perform set_config('lock_timeout', patience, true);
    perform pg_advisory_xact_lock(1296649292, '{schema}.runs'::regclass::oid::int4);
end $$;

create function {schema}.head(out "position" bigint, out recorded bigint, out hash bytea)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select coalesce(h.position, 0), coalesce(h.recorded, 0), coalesce(h.hash, decode(repeat('00', 32), 'hex'))
    from (select 1) one left join
        (select r.position + r.count - 1 as position, r.recorded, r.hash
         from {schema}.runs r order by r.position desc limit 1) h on true
$$;

-- The position of an event that a query (types, tags, after) matches, if there is one.
create function {schema}.find(query json) returns bigint
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
    after bigint := (query->>'after')::bigint;
    types text[] := array(select json_array_elements_text(query->'types'));
    tags text[] := array(select json_array_elements_text(query->'tags'));
    kinds bigint[];
    found_at bigint;
begin
    if cardinality(types) > 0 then
        kinds := array(select k.id from {schema}.kinds k where k.type = any(types));
        if cardinality(kinds) = 0 then
            return null;
        end if;
    end if;
    -- No run is longer than 65,536 events, which bounds where one that reaches past `after` may begin.
    if cardinality(tags) > 0 then
        select r.position + r.count - 1 into found_at
        from {schema}.tags t join {schema}.runs r on r.position = t.position
        where t.tag = tags[1] and t.position > after - 65536 and r.position + r.count - 1 > after
          and (kinds is null or r.kind = any(kinds))
          and (select count(*) from {schema}.tags o where o.position = r.position and o.tag = any(tags))
              = cardinality(tags)
        limit 1;
    elsif kinds is null then
        select r.position + r.count - 1 into found_at from {schema}.runs r
        where r.position > after - 65536 and r.position + r.count - 1 > after limit 1;
    else
        select r.position + r.count - 1 into found_at from {schema}.runs r
        where r.kind = any(kinds) and r.position > after - 65536 and r.position + r.count - 1 > after limit 1;
    end if;
    return found_at;
end $$;

-- Bodies that are too large to travel with their headers are put first, under numbers below 0, and get the position of
-- their run when it is placed, in the same transaction.
create function {schema}.put_body(encoding int, rows bigint, bytes bytea) returns bigint
language sql security definer set search_path = pg_catalog, pg_temp as $$
    insert into {schema}.bodies (id, encoding, rows, bytes)
    values (-nextval('{schema}.body_numbers'), encoding, rows, bytes) returning id
$$;

-- What the clock says, in microseconds since 1970: the caller's, or the server's own, which may not be beyond `latest`.
create function {schema}.now(clock bigint, latest bigint) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    now bigint := coalesce(clock, (extract(epoch from clock_timestamp()) * 1000000)::bigint);
begin
    if clock is null and now > latest then
        raise exception 'millstream: the clock jumped' using errcode = 'MS003', detail = now::text;
    end if;
    return now;
end $$;

-- The commonest append of all, as short as can be: one event, its body inline, no id, no tags. `actual` is the
-- stream's version when that is not the one expected, `is_closed` is said of a stream that is closed; nothing is placed
-- then. Like `append` in all else.
create function {schema}.append_one(
    stream text, name text, category text, type text, schema text, kind text, body text, body_hash bytea, meta text,
    meta_text text, expect bigint, origin bigint, clock bigint, latest bigint, patience text,
    out now bigint, out at_position bigint, out at_version bigint, out at_recorded bigint, out actual bigint,
    out is_closed boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    stream_id bigint;
    kind_id bigint;
    at_hash bytea;
    done boolean;
begin
    -- What never changes once it is there is looked up before the lock, which is to be held briefly.
    select (select s.id from {schema}.streams s where s.name = append_one.stream),
           (select k.id from {schema}.kinds k where k.category = append_one.category and k.type = append_one.type
            and k.schema = append_one.schema) into stream_id, kind_id;
    -- As lock() and now() do: calling them would cost a tenth of the whole. And assigned, not performed: an expression
    -- costs a fifth of a statement.
    if current_setting('transaction_isolation') <> 'read committed' then
        perform {schema}.lock(patience);
    end if;
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    done := set_config('lock_timeout', patience, true) is null;
    done := pg_advisory_xact_lock(1296649292, '{schema}.runs'::regclass::oid::int4) is null;
    now := coalesce(clock, (extract(epoch from clock_timestamp()) * 1000000)::bigint);
    if clock is null and now > latest then
        now := {schema}.now(clock, latest);
    end if;
    if stream_id is null then
        select s.id into stream_id from {schema}.streams s where s.name = append_one.stream;
    end if;
    select s.closed, v.version, h.position, h.recorded, h.hash
    into is_closed, at_version, at_position, at_recorded, at_hash
    from (select 1) one
    left join lateral (select s.closed from {schema}.streams s where s.id = stream_id) s on true
    left join lateral (select r.version + r.count - 1 as version from {schema}.runs r
                       where r.stream = stream_id order by r.version desc limit 1) v on true
    left join lateral (select r.position + r.count as position, r.recorded, r.hash
                       from {schema}.runs r order by r.position desc limit 1) h on true;
    at_version := coalesce(at_version, 0);
    if is_closed then
        return;
    end if;
    if expect <> at_version then
        actual := at_version;
        return;
    end if;
    if stream_id is null then
        insert into {schema}.streams (name) values (append_one.stream) returning id into stream_id;
    end if;
    if kind_id is null then
        select k.id into kind_id from {schema}.kinds k
        where k.category = append_one.category and k.type = append_one.type and k.schema = append_one.schema;
    end if;
    if kind_id is null then
        insert into {schema}.kinds (category, type, schema)
        values (append_one.category, append_one.type, append_one.schema) returning id into kind_id;
    end if;
    at_position := coalesce(at_position, 1);
    at_version := at_version + 1;
    at_recorded := greatest(at_recorded, now);
    insert into {schema}.runs (position, count, stream, version, kind, recorded, origin, format, body_hash, hash,
                               metadata, body)
    values (at_position, 1, stream_id, at_version, kind_id, at_recorded, origin, 1, body_hash,
            sha256(coalesce(at_hash, decode(repeat('00', 32), 'hex')) || body_hash || convert_to(
                format('[%s,1,%s,%s,%s,%s,null,[],%s,1]', at_position, name, at_version, kind, at_recorded,
                       coalesce(meta_text, 'null')), 'UTF8')),
            meta, body);
    done := pg_notify('millstream_' || '{schema}.runs'::regclass::oid::text, at_position::text) is null;
end $$;

-- Many appends such as `append_one` takes, each a request of its own. Of those to the same stream none may expect a
-- version. The answer has, for each, the version of its event; minus one less the stream's version when that is not the
-- one expected; null when the stream is closed. What is placed stands from `first_position` on, in order.
create function {schema}.append_many(
    batch json, clock bigint, latest bigint, patience text,
    out now bigint, out first_position bigint, out at_recorded bigint, out answers bigint[])
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
declare
    row record;
    at_hash bytea;
    at_position bigint;
    numbers bigint[] := '{}';
    streams bigint[] := '{}';
    versions bigint[] := '{}';
    kinds bigint[] := '{}';
    hashes bytea[] := '{}';
begin
    perform {schema}.lock(patience);
    now := {schema}.now(clock, latest);
    select h.position, h.recorded, h.hash into at_position, at_recorded, at_hash from {schema}.head() h;
    first_position := at_position + 1;
    at_recorded := greatest(at_recorded, now);
    answers := '{}';
    for row in
        select b.*, s.id as stream_id, s.closed, coalesce(v.version, 0) as version, k.id as kind_id
        from rows from (json_to_recordset(batch) as (
            stream text, nth bigint, name text, category text, type text, schema text, kind text, hash text,
            meta_text text, expect bigint)) with ordinality b
        left join lateral (select s.id, s.closed from {schema}.streams s where s.name = b.stream offset 0) s on true
        left join lateral (select r.version + r.count - 1 as version from {schema}.runs r
                           where r.stream = s.id order by r.version desc limit 1) v on true
        left join lateral (select k.id from {schema}.kinds k where k.category = b.category and k.type = b.type
                           and k.schema = b.schema limit 1) k on true
        order by b.ordinality
    loop
        if row.closed then
            answers := answers || null::bigint;
            continue;
        end if;
        if row.expect <> row.version then
            answers := answers || (-1 - row.version);
            continue;
        end if;
        if row.stream_id is null then
            insert into {schema}.streams as s (name) values (row.stream)
            on conflict (name) do update set closed = s.closed returning s.id into row.stream_id;
        end if;
        if row.kind_id is null then
            select k.id into row.kind_id from {schema}.kinds k
            where k.category = row.category and k.type = row.type and k.schema = row.schema;
            if row.kind_id is null then
                insert into {schema}.kinds (category, type, schema)
                values (row.category, row.type, row.schema) returning id into row.kind_id;
            end if;
        end if;
        at_position := at_position + 1;
        row.version := row.version + row.nth;
        at_hash := sha256(at_hash || decode(row.hash, 'hex') || convert_to(
            '[' || at_position || ',1,' || row.name || ',' || row.version || ',' || row.kind || ',' || at_recorded
            || ',null,[],' || coalesce(row.meta_text, 'null') || ',1]', 'UTF8'));
        answers := answers || row.version;
        numbers := numbers || row.ordinality;
        streams := streams || row.stream_id;
        versions := versions || row.version;
        kinds := kinds || row.kind_id;
        hashes := hashes || at_hash;
    end loop;
    if at_position < first_position then
        return;
    end if;
    insert into {schema}.runs (position, count, stream, version, kind, recorded, origin, format, body_hash, hash,
                               metadata, body)
    select first_position + p.at - 1, 1, p.stream, p.version, p.kind, at_recorded, b.origin, 1,
           decode(b.hash, 'hex'), p.hash, b.meta, b.body
    from unnest(numbers, streams, versions, kinds, hashes) with ordinality p (number, stream, version, kind, hash, at)
    join rows from (json_to_recordset(batch) as (hash text, meta text, body text, origin bigint)) with ordinality b
        on b.ordinality = p.number;
    perform pg_notify('millstream_' || '{schema}.runs'::regclass::oid::text, at_position::text);
end $$;

-- Append a batch of requests, a JSON list: each wholly or not at all, and the answer says which. A request holds its
-- appends in order, an append its runs. The answer has one object per request: a receipt, or what stood against it.
create function {schema}.append(batch json, bodies bytea[], clock bigint, latest bigint, patience text) returns json
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    now bigint;
    request record;
    append record;
    run record;
    earlier record;
    parts json[];
    answer json;
    answers json[] := '{}';
    stream_id bigint;
    stream_closed boolean;
    kind_id bigint;
    last_kind text;
    body_number bigint;
    found_at bigint;
    head_position bigint;
    at_position bigint;
    at_recorded bigint;
    at_hash bytea;
    at_version bigint;
    first_position bigint;
    events bigint;
    last_stream text;
begin
    perform {schema}.lock(patience);
    now := {schema}.now(clock, latest);
    select h.position, h.recorded, h.hash into head_position, at_recorded, at_hash from {schema}.head() h;
    at_position := head_position;
    for request in
        select * from json_to_recordset(batch) as r (id text, digest text, origin bigint, appends json)
    loop
        answer := null;
        stream_id := null;
        at_version := 0;
        if request.id is not null then
            select a.digest, a.result, a.last into earlier from {schema}.appends a where a.id = request.id;
            if found then
                if earlier.digest = decode(request.digest, 'hex') then
                    answers := answers || json_build_object('done', earlier.result);
                else
                    answers := answers || json_build_object('reused', earlier.last);
                end if;
                continue;
            end if;
        end if;
        -- All conditions first: nothing is placed when one fails.
        parts := array(select json_array_elements(request.appends));
        for i in 1 .. cardinality(parts) loop
            select * into append from json_to_record(parts[i]) as a
                (stream text, name text, category text, expect bigint, before bigint, unless json, shapes int,
                 close boolean, runs json);
            select s.id, s.closed, (select r.version + r.count - 1 from {schema}.runs r
                                    where r.stream = s.id order by r.version desc limit 1)
            into stream_id, stream_closed, at_version from {schema}.streams s where s.name = append.stream;
            at_version := coalesce(at_version, 0);
            if stream_closed then
                answer := json_build_object('closed', append.stream);
            elsif append.expect <> at_version + coalesce(append.before, 0) then
                answer := json_build_object('conflict', append.stream, 'expected', append.expect,
                                            'actual', at_version + coalesce(append.before, 0));
            elsif append.unless is not null then
                select max({schema}.find(q)) into found_at from json_array_elements(append.unless) q;
                if found_at is not null then
                    answer := json_build_object('matched', found_at);
                end if;
            end if;
            if answer is null and append.shapes <>
                (select count(*) from {schema}.catalogue c where c.stream = stream_id) then
                -- The caller has checked its frames' columns against fewer shapes than the stream has now.
                answer := json_build_object('shapes', append.stream);
            end if;
            exit when answer is not null;
        end loop;
        if answer is not null then
            answers := answers || answer;
            continue;
        end if;
        first_position := at_position + 1;
        events := 0;
        last_stream := null;
        for i in 1 .. cardinality(parts) loop
            if cardinality(parts) > 1 then
                select * into append from json_to_record(parts[i]) as a
                    (stream text, name text, category text, close boolean, runs json);
                select s.id, (select r.version + r.count - 1 from {schema}.runs r
                              where r.stream = s.id order by r.version desc limit 1)
                into stream_id, at_version from {schema}.streams s where s.name = append.stream;
                at_version := coalesce(at_version, 0);
            end if;
            at_recorded := greatest(at_recorded, now);
            last_stream := append.stream;
            if stream_id is null then
                insert into {schema}.streams (name) values (append.stream) returning id into stream_id;
            end if;
            last_kind := null;
            for run in
                select * from json_to_recordset(append.runs) as r
                    (type text, schema text, kind text, count bigint, format smallint, encoding smallint, body text,
                     slot int, ref bigint, body_hash text, effective bigint, tags json, tags_text text,
                     metadata text, metadata_text text, ranges json)
            loop
                if run.kind is distinct from last_kind then
                    select k.id into kind_id from {schema}.kinds k
                    where k.category = append.category and k.type = run.type and k.schema = run.schema;
                    if kind_id is null then
                        insert into {schema}.kinds (category, type, schema)
                        values (append.category, run.type, run.schema) returning id into kind_id;
                    end if;
                    last_kind := run.kind;
                    if run.format = 2 then
                        insert into {schema}.catalogue values (stream_id, kind_id) on conflict do nothing;
                    end if;
                end if;
                at_hash := sha256(at_hash || decode(run.body_hash, 'hex') || convert_to(
                    '[' || at_position + 1 || ',' || run.count || ',' || append.name || ',' || at_version + 1 || ','
                    || run.kind || ',' || at_recorded || ',' || coalesce(run.effective::text, 'null') || ','
                    || coalesce(run.tags_text, '[]') || ',' || coalesce(run.metadata_text, 'null') || ','
                    || run.format || ']', 'UTF8'));
                body_number := null;
                if run.slot is not null then
                    body_number := at_position + 1;
                    insert into {schema}.bodies (id, encoding, rows, bytes)
                    values (body_number, run.encoding, run.count, bodies[run.slot]);
                elsif run.ref is not null then
                    body_number := at_position + 1;
                    update {schema}.bodies b set id = body_number where b.id = run.ref;
                end if;
                insert into {schema}.runs (position, count, stream, version, kind, recorded, effective, origin,
                                           format, body_hash, hash, metadata, body_ref, body)
                values (at_position + 1, run.count, stream_id, at_version + 1, kind_id, at_recorded, run.effective,
                        request.origin, run.format, decode(run.body_hash, 'hex'), at_hash, run.metadata, body_number,
                        run.body);
                if run.tags is not null then
                    insert into {schema}.tags (tag, position)
                    select t, at_position + 1 from json_array_elements_text(run.tags) t;
                end if;
                if run.ranges is not null then
                    insert into {schema}.ranges (position, name, low, high)
                    select at_position + 1, x->>0, (x->>1)::bigint, (x->>2)::bigint
                    from json_array_elements(run.ranges) x;
                end if;
                at_position := at_position + run.count;
                at_version := at_version + run.count;
                events := events + run.count;
            end loop;
            if append.close then
                update {schema}.streams s set closed = true where s.id = stream_id;
            end if;
        end loop;
        if events = 0 then
            first_position := at_position;
        end if;
        answer := json_build_object('first', first_position, 'position', at_position, 'count', events,
                                    'stream', last_stream, 'version', coalesce(at_version, 0), 'recorded', at_recorded);
        if request.id is not null then
            insert into {schema}.appends (id, digest, first, last, result)
            values (request.id, decode(request.digest, 'hex'), first_position, at_position, answer::text);
        end if;
        answers := answers || answer;
    end loop;
    if at_position > head_position then
        perform pg_notify('millstream_' || '{schema}.runs'::regclass::oid::text, at_position::text);
    end if;
    return json_build_object('now', now, 'answers', array_to_json(answers));
end $$;

-- What was placed after a position by requests of these origins: how a writer whose connection was lost finds out.
create function {schema}.find_origins(after bigint, origins bigint[])
returns table (origin bigint, first bigint, last bigint, stream text, version bigint, recorded bigint)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select distinct on (r.origin) r.origin, min(r.position) over (partition by r.origin), r.position + r.count - 1,
           s.name, r.version + r.count - 1, r.recorded
    from {schema}.runs r join {schema}.streams s on s.id = r.stream
    where r.position > after and r.origin = any(origins) order by r.origin, r.position desc
$$;

-- The version of a stream's first run at or after a position; one past its last when there is none.
create function {schema}.version_at(stream_name text, at bigint) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    stream_id bigint;
    low bigint := 1;
    high bigint;
    middle bigint;
    found_at record;
begin
    if at <= 1 then
        return 0;
    end if;
    select s.id into stream_id from {schema}.streams s where s.name = stream_name;
    select r.version + r.count into high
    from {schema}.runs r where r.stream = stream_id order by r.version desc limit 1;
    high := coalesce(high, 1);
    while low < high loop
        middle := (low + high) / 2;
        select r.version, r.position into found_at
        from {schema}.runs r where r.stream = stream_id and r.version >= middle order by r.version limit 1;
        if not found or found_at.position >= at then
            high := middle;
        else
            low := found_at.version + 1;
        end if;
    end loop;
    return low;
end $$;

-- The version of a stream's run that holds a position, else of its first run after.
create function {schema}.version_from(stream_name text, at bigint) returns bigint
language sql stable set search_path = pg_catalog, pg_temp as $$
    select coalesce(
        (select case when before.position + before.count > at then before.version end
         from (select r.position, r.count, r.version from {schema}.runs r
               where r.stream = (select s.id from {schema}.streams s where s.name = stream_name)
                 and r.version < v.version order by r.version desc limit 1) before),
        v.version)
    from {schema}.version_at(stream_name, at) v (version)
$$;

-- The last position that was recorded strictly before a time. `recorded` never goes backwards, so a search by
-- halves over positions needs no index.
create function {schema}.position_at(micros bigint) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    low bigint := 1;
    high bigint;
    middle bigint;
    answer bigint := 0;
    run record;
begin
    select max(r.position) into high from {schema}.runs r;
    high := coalesce(high, 0);
    while low <= high loop
        middle := (low + high) / 2;
        select r.position, r.count, r.recorded into run
        from {schema}.runs r where r.position <= middle order by r.position desc limit 1;
        if run.recorded < micros then
            answer := run.position + run.count - 1;
            low := answer + 1;
        else
            high := run.position - 1;
        end if;
    end loop;
    return answer;
end $$;

-- What a role that may only append has to know: the shapes of frames that a stream holds, …
create function {schema}.shapes(stream_name text) returns table (type text, schema text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select k.type, k.schema from {schema}.catalogue c
    join {schema}.kinds k on k.id = c.kind join {schema}.streams s on s.id = c.stream
    where s.name = stream_name
$$;

-- … and the receipt of an append whose id it has.
create function {schema}.find_append(append_id text) returns table (digest bytea, result text, last bigint)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select a.digest, a.result, a.last from {schema}.appends a where a.id = append_id
$$;
