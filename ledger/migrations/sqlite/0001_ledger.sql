-- Times are microseconds since 1970 in UTC: `at` in the scheduler's calendar, `real_at` in real time.
-- Bodies are JSON as text. Nothing here knows what a kind means.

-- 'TROO': tells a ledger from any other SQLite file.
pragma application_id = 1414680399;

create table events (
    id integer primary key,
    at integer not null,
    real_at integer not null,
    kind text not null,
    version integer not null,
    key text,
    team text,
    actor text,
    body text not null,
    -- SHA-256 over the previous event's hash and every other column, in hexadecimal. See chain.rs.
    hash text not null
) strict;
create index events_by_kind on events (kind, id);
create index events_by_key on events (key, id);
create index events_by_at on events (at);

-- The chain finds a changed event; these stop the honest mistake.
create trigger events_are_never_changed before update on events
begin
    select raise(abort, 'events are never changed');
end;
create trigger events_are_never_removed before delete on events
begin
    select raise(abort, 'events are never removed');
end;

create table plans (
    day text not null,
    team text not null,
    version integer not null,
    body text not null,
    at integer not null,
    real_at integer not null,
    event integer not null references events (id),
    primary key (day, team)
) strict;

create table intents (
    -- The order in which they were written.
    seq integer primary key autoincrement,
    id text not null unique,
    kind text not null,
    key text not null,
    team text,
    body text not null,
    at integer not null,
    real_at integer not null,
    -- Null while the intent is open.
    outcome text,
    outcome_body text,
    settled_at integer,
    settled_real_at integer,
    check ((outcome is null) = (outcome_body is null)),
    check ((outcome is null) = (settled_real_at is null))
) strict;
create index intents_by_outcome on intents (outcome, seq);
create index intents_by_key on intents (key, seq);
create index intents_by_at on intents (at);

create table locks (
    name text not null primary key,
    -- Null while nobody holds it. The row stays, so that its fence never starts anew.
    holder text,
    fence integer not null,
    at integer not null,
    real_at integer not null
) strict;

create table pushes (
    id integer primary key autoincrement,
    key text not null,
    body text not null,
    version integer not null,
    ended integer not null check (ended in (0, 1)),
    at integer not null,
    real_at integer not null
) strict;
create index pushes_by_key on pushes (key, id);
create index pushes_by_ended on pushes (ended, id);

create table requests (
    id integer primary key autoincrement,
    kind text not null,
    key text not null,
    body text not null,
    at integer not null,
    real_at integer not null,
    -- Null while the request is open.
    answer text,
    answered_real_at integer
) strict;
create index requests_by_kind on requests (kind, answered_real_at);

create table marks (
    kind text not null,
    key text not null,
    body text not null,
    at integer not null,
    real_at integer not null,
    primary key (kind, key)
) strict;

create table meta (
    name text not null primary key,
    value text not null,
    real_at integer not null
) strict;
