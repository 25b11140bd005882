-- The inline handlers that every writer must have stand in meta as 'inline' (JSON), with a counter that each change
-- raises. A session says in millstream.inline which state of it it has looked at, and what it lacks it does not append;
-- one that has looked at another state, or never, is sent to look. Enabled while anything is registered.
create function {schema}.refuse_unseen() returns trigger language plpgsql as $$
declare
    counter text := (select m.value::json ->> 'counter' from {schema}.meta m where m.key = 'inline');
begin
    if current_setting('millstream.inline', true) is distinct from counter
        and current_setting('millstream.moving', true) is distinct from 'on'
    then
        raise exception 'millstream: the inline handlers that writers must have were changed' using errcode = 'MS005';
    end if;
    return null;
end $$;
create trigger inline before insert on {schema}.runs for each statement execute function {schema}.refuse_unseen();
alter table {schema}.runs disable trigger inline;

-- Change the register, behind the lock that appends are serialised by: a value that others have changed meanwhile is
-- left alone, and false returned.
create function {schema}.register_inline(register text, before bigint, patience text) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform {schema}.lock(patience);
    if before <> coalesce((select (m.value::json ->> 'counter')::bigint from {schema}.meta m where m.key = 'inline'), 0)
    then
        return false;
    end if;
    insert into {schema}.meta as m values ('inline', register)
        on conflict (key) do update set value = excluded.value;
    if (select count(*) from json_object_keys(register::json -> 'handlers')) > 0 then
        alter table {schema}.runs enable trigger inline;
    else
        alter table {schema}.runs disable trigger inline;
    end if;
    return true;
end $$;

-- Whoever appends and reads may run projections, and so register them.
revoke all on function {schema}.register_inline from public;
do $$
declare
    consumer name;
begin
    -- Whoever migrates, both work with the rights of the log's owner.
    execute (select format('alter function {schema}.register_inline owner to %I', r.rolname) from pg_proc p
        join pg_roles r on r.oid = p.proowner where p.oid = '{schema}.version_at(text, bigint)'::regprocedure);
    for consumer in
        select r.rolname from pg_proc p cross join lateral aclexplode(p.proacl) a join pg_roles r on r.oid = a.grantee
        where p.oid = '{schema}.version_at(text, bigint)'::regprocedure and a.privilege_type = 'EXECUTE'
          and a.grantee <> p.proowner
          and exists (
            select from pg_proc q cross join lateral aclexplode(q.proacl) b
            where q.pronamespace = p.pronamespace and q.proname = 'append_one' and b.grantee = a.grantee)
    loop
        execute format('grant execute on function {schema}.register_inline to %I', consumer);
    end loop;
end $$;
