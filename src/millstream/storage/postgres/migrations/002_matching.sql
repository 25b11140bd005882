-- Queries by types and tags, for readers and guards: where the runs begin that hold events in (after, until) that have
-- all of these tags, are of these kinds, and are of this stream, or of streams with names in [lowest, beyond). Null
-- does not restrict.
--
-- Each of these is a list of positions in order, by index. The search goes in steps: it looks how far so many entries of
-- every list reach; the one whose entries reach farthest is the rarest here, and leads: its entries are looked up in the
-- others. So the cost follows the rarest list, and nothing needs statistics, which a young table has not.
create function {schema}.matched(
    tags text[], kinds bigint[], stream_name text, lowest text, beyond text, after bigint, until bigint, most bigint,
    backwards boolean) returns setof bigint
language plpgsql stable set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off as $$
declare
    toward text := case when backwards then 'desc' else 'asc' end;
    stream_id bigint;
    low bigint;
    step bigint := 64;
    left_over bigint := most;
    lists text[] := '{}';
    checks text[] := '{}';
    orders text[] := '{}';
    always text := '';
    lead int;
    reach bigint;
    farthest bigint;
    first bigint;
    beyond_last bigint;
    got bigint;
begin
    if cardinality(kinds) = 0 then
        return;
    end if;
    if stream_name is not null then
        select s.id into stream_id from {schema}.streams s where s.name = stream_name;
        if stream_id is null then
            return;
        end if;
    end if;
    -- A run may begin before `after` and reach past it.
    select case when r.position + r.count - 1 > after then r.position end into low
    from {schema}.runs r where r.position <= after + 1 order by r.position desc limit 1;
    low := coalesce(low, after + 1);
    -- The lists, how a position is looked up in each, and the columns that they are in order of.
    -- $1 tags, $2 kinds, $3 stream, $4 low, $5 until, $6 limit or offset, $7 and $8 lowest and beyond, $9 the name.
    for i in 1 .. cardinality(tags) loop
        lists := lists || format('{schema}.tags l where l.tag = $1[%s] and l.position >= $4 and l.position < $5', i);
        checks := checks
            || format(' and (select true from {schema}.tags o where o.tag = $1[%s] and o.position = l.position)', i);
        orders := orders || 'l.position'::text;
    end loop;
    if kinds is not null then
        lists := lists || '{schema}.runs l where l.kind = k and l.position >= $4 and l.position < $5'::text;
        checks := checks
            || ' and (select o.kind = any($2) from {schema}.runs o where o.position = l.position)'::text;
        orders := orders || 'l.position'::text;
    end if;
    if stream_id is not null then
        lists := lists || ('{schema}.runs l where l.stream = $3 and l.version >= (select {schema}.version_at($9, $4))'
            || ' and l.version < (select {schema}.version_at($9, $5))');
        checks := checks || ' and (select o.stream = $3 from {schema}.runs o where o.position = l.position)'::text;
        orders := orders || 'l.version'::text;
    end if;
    if cardinality(lists) = 0 then
        lists := lists || '{schema}.runs l where l.position >= $4 and l.position < $5'::text;
        checks := checks || ''::text;
        orders := orders || 'l.position'::text;
    end if;
    if lowest is not null then
        always := ' and (select s.name >= $7 and s.name < $8 from {schema}.runs o'
            || ' join {schema}.streams s on s.id = o.stream where o.position = l.position)';
    end if;
    while low < until and left_over > 0 loop
        lead := 1;
        farthest := null;
        if cardinality(lists) > 1 then
            for i in 1 .. cardinality(lists) loop
                if lists[i] like '%l.kind = k%' then
                    execute format('select %s(x.position) from unnest($2) k cross join lateral'
                        || ' (select l.position from %s order by l.position %s limit 1 offset $6) x',
                        case when backwards then 'max' else 'min' end, lists[i], toward)
                    into reach using tags, kinds, stream_id, low, until, step - 1, lowest, beyond, stream_name;
                else
                    execute format('select l.position from %s order by %s %s limit 1 offset $6',
                        lists[i], orders[i], toward)
                    into reach using tags, kinds, stream_id, low, until, step - 1, lowest, beyond, stream_name;
                end if;
                if reach is null then
                    lead := i;
                    farthest := null;
                    exit;
                end if;
                if farthest is null or (reach < farthest) = backwards and reach <> farthest then
                    lead := i;
                    farthest := reach;
                end if;
            end loop;
        end if;
        first := case when backwards then coalesce(farthest, low) else low end;
        beyond_last := case when backwards then until else coalesce(farthest + 1, until) end;
        return query execute (
            select case when lists[lead] like '%l.kind = k%'
                then format('select x.position from unnest($2) k cross join lateral (select l.position from %s%s'
                    || ' order by l.position %s limit $6) x order by x.position %s limit $6',
                    lists[lead], others || always, toward, toward)
                else format('select l.position from %s%s order by %s %s limit $6',
                    lists[lead], others || always, orders[lead], toward) end
            from (select coalesce(string_agg(c, '' order by n), '') from unnest(checks) with ordinality u (c, n)
                  where n <> lead) o (others))
        using tags, kinds, stream_id, first, beyond_last, left_over, lowest, beyond, stream_name;
        get diagnostics got = row_count;
        left_over := left_over - got;
        if backwards then
            until := first;
        else
            low := beyond_last;
        end if;
        step := case when step < 65536 then step * 4 else step end;
    end loop;
end $$;

-- The position of an event that a query (types, tags, after) matches, if there is one.
create or replace function {schema}.find(query json) returns bigint
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
    types text[] := array(select json_array_elements_text(query->'types'));
    tags text[] := array(select distinct json_array_elements_text(query->'tags'));
    kinds bigint[];
    found_at bigint;
begin
    if cardinality(types) > 0 then
        kinds := array(select k.id from {schema}.kinds k where k.type = any(types));
    end if;
    select m into found_at
    from {schema}.matched(tags, kinds, null, null, null, (query->>'after')::bigint, 1::bigint << 62, 1, false) m;
    return (select r.position + r.count - 1 from {schema}.runs r where r.position = found_at);
end $$;

-- Who reads by versions may read by queries.
revoke all on function {schema}.matched from public;
do $$
declare
    reader name;
begin
    -- Whoever migrates, `find` goes on with the rights of the log's owner, who has the next migration to do as well.
    execute (select format('alter function {schema}.matched owner to %I', r.rolname) from pg_proc p
        join pg_roles r on r.oid = p.proowner where p.oid = '{schema}.version_at(text, bigint)'::regprocedure);
    for reader in
        select r.rolname from pg_proc p cross join lateral aclexplode(p.proacl) a join pg_roles r on r.oid = a.grantee
        where p.oid = '{schema}.version_at(text, bigint)'::regprocedure and a.privilege_type = 'EXECUTE'
          and a.grantee <> p.proowner
    loop
        execute format('grant execute on function {schema}.matched to %I', reader);
    end loop;
end $$;
