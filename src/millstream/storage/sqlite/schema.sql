-- The on-disk format, version 1. docs/format.md explains it; tests/golden holds files of it.
create table meta (
    key   text primary key,
    value any
) without rowid;

create table streams (
    id     integer primary key,
    name   text not null unique,
    closed integer not null default 0
);

-- One row per (category, type, schema) that occurs: the category is the stream's name up to its first '-',
-- the dash included, or all of it.
create table kinds (
    id       integer primary key,
    category text not null,
    type     text not null,
    schema   text not null,
    unique (category, type, schema)
);

-- One header per run. Rows are only ever added; compaction, archiving and trimming change body_ref, body_offset
-- and body alone.
create table runs (
    position    integer primary key,
    count       integer not null,
    stream      integer not null,
    version     integer not null,
    kind        integer not null,
    recorded    integer not null,
    effective   integer,
    format      integer not null,
    body_hash   blob not null,
    hash        blob not null,
    metadata    text,
    body_ref    integer,
    body_offset integer not null default 0,
    body        text
);
create unique index runs_stream on runs (stream, version);
create index runs_kind on runs (kind);

-- Bodies that compaction has merged have numbers below 0, and only those are shared by headers.
create index runs_merged on runs (body_ref) where body_ref < 0;

create table bodies (
    id       integer primary key,
    encoding integer not null,
    rows     integer not null,
    bytes    blob not null
);

create table tags (
    tag      text not null,
    position integer not null,
    primary key (tag, position)
) without rowid;
create index tags_position on tags (position);

create table appends (
    id     text primary key,
    digest blob not null,
    first  integer not null,
    last   integer not null,
    result text not null
) without rowid;
create index appends_last on appends (last);

-- The shapes of frames that a stream holds: what a scan of it has as columns.
create table catalogue (
    stream integer not null,
    kind   integer not null,
    primary key (stream, kind)
) without rowid;

-- Minimum and maximum (microseconds) of each datetime column of a run of a frame.
create table ranges (
    position integer not null,
    name     text not null,
    low      integer not null,
    high     integer not null,
    primary key (position, name)
) without rowid;

create view events as
select r.position, r.count, s.name as stream, r.version, k.type,
       strftime('%Y-%m-%dT%H:%M:%f', r.recorded / 1000000.0, 'unixepoch') || 'Z' as recorded,
       r.metadata, r.body
from runs r join streams s on s.id = r.stream join kinds k on k.id = r.kind;
