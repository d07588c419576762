"""The tables, and how they come about.

Owns: the data definitions and their version. Law: a schema is created or migrated in one transaction, under an
advisory lock, by whoever needs it first; one that is newer than this library is refused and not touched. Must not
know: what the tables are used for, beyond their comments here.

What is in them, each row by the number of its queue::

    meta      the version of the schema, and its uuid
    queues    name; ``tail``, the next number to be given; counts that no living session keeps
    items     every item: number, payload, and where it is: waiting, leased, delayed, dead
    leases    token, owner, deadline; its row is the lock of what the lease holds
    sessions  one row a connection: the token of its last change, and whether it was shut out
    counts    what each session has taken from each queue, and what is away by it
    state     ``queue.state``
    marks     of forwarders: what was stored last of which source
    readers   named readers: the place that each has passed
    tails     of queues that keep so many bytes, or seconds: when, and after how much, the tail was where

A queue's row is written by each push, and a session's by each change, in place: with room left in the page
(``fillfactor``) the new version goes beside the old, and no index is touched (HOT). Items come and go, so their
table is vacuumed after every few thousand of them, by count and not by share, as fast as the disk allows.

The server may believe that the table is empty when it is not, since it was when it was vacuumed; then all indexes
look equally good to it. So each statement has one index that fits: ``queue`` comes first only in those of one state.
"""

import os
from typing import Any, Final, LiteralString

import psycopg

from lmdbqueue._errors import VersionError
from lmdbqueue.postgres._sql import Sql

_LOCK: Final = 0x6C6D_6462_7175_6575  # of whoever creates or migrates a schema, in any database: "lmdbqueu"

# From the tables, since what a session remembers of names may be older than the lock that it waited for
_HAS_SCHEMA: Final = "SELECT 1 FROM pg_namespace WHERE nspname = %(schema)s"
_HAS_META: Final = """
SELECT 1 FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname = %(schema)s AND relname = 'meta'
"""
_CREATE_SCHEMA: Final = "CREATE SCHEMA {schema}"
_VERSION: Final = "SELECT version, uuid FROM {meta}"
_SET_VERSION: Final = "UPDATE {meta} SET version = %(version)s"

_TABLES_1: Final = """
CREATE TABLE {meta} (version integer NOT NULL, uuid text NOT NULL);

CREATE TABLE {queues} (
    id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text COLLATE "C" NOT NULL UNIQUE,
    tail        bigint NOT NULL DEFAULT 0,
    is_watched  boolean NOT NULL DEFAULT false,  -- somebody has waited for room, or for its end
    waiting     bigint NOT NULL DEFAULT 0,
    leased      bigint NOT NULL DEFAULT 0,
    delayed     bigint NOT NULL DEFAULT 0,
    dead        bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TABLE {items} (
    queue     integer NOT NULL,
    seq       bigint NOT NULL,
    due       bigint NOT NULL DEFAULT {never},  -- microseconds since 1970
    lease     bigint,                           -- its token
    attempts  integer NOT NULL DEFAULT 0,
    state     text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'leased', 'delayed', 'dead')),
    key       bytea,                            -- of ``unique``: a digest
    changed   timestamptz,                      -- when it last came back, or died
    reason    text,                             -- and why
    payload   bytea NOT NULL,
    PRIMARY KEY (seq, queue)
) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_analyze_scale_factor = 0,
        autovacuum_analyze_threshold = 20000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX items_waiting ON {items} (queue, due, seq) WHERE state = 'waiting';
CREATE INDEX items_delayed ON {items} (queue, due) WHERE state = 'delayed';
CREATE INDEX items_dead ON {items} (queue, seq) WHERE state = 'dead';
CREATE INDEX items_leased ON {items} (lease) WHERE lease IS NOT NULL;
CREATE UNIQUE INDEX items_key ON {items} (key, queue) WHERE key IS NOT NULL;

CREATE TABLE {leases} (
    token     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue     integer NOT NULL,
    owner     bigint NOT NULL,       -- a session, which holds the advisory lock of that number while it lives
    deadline  timestamptz NOT NULL   -- infinity: as long as the owner lives
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX leases_deadline ON {leases} (queue, deadline);
CREATE INDEX leases_owner ON {leases} (queue, owner);

CREATE TABLE {sessions} (
    id         bigint PRIMARY KEY,  -- also of an advisory lock, which its connection holds
    token      bigint NOT NULL DEFAULT 0,
    result     bigint,              -- of a change whose reply may get lost together with the connection
    is_fenced  boolean NOT NULL DEFAULT false,
    seen       timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TABLE {counts} (
    queue    integer NOT NULL,
    session  bigint NOT NULL,
    waiting  bigint NOT NULL DEFAULT 0,
    leased   bigint NOT NULL DEFAULT 0,
    delayed  bigint NOT NULL DEFAULT 0,
    dead     bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (queue, session)
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TABLE {state} (
    queue  integer NOT NULL,
    key    bytea NOT NULL,  -- UTF-8
    value  bytea NOT NULL,
    PRIMARY KEY (queue, key)
);

CREATE TABLE {marks} (
    source   text NOT NULL,      -- uuid of a queue directory
    name     text NOT NULL,      -- of the queue in it
    queue    integer NOT NULL,   -- that its items go to
    number   bigint NOT NULL,    -- of batches
    next     bigint NOT NULL,    -- number of an item: none of a batch was as great
    removed  bigint NOT NULL,    -- how many items have left the source once the last batch has
    batch    bigint[] NOT NULL,  -- the numbers in the last batch: first, last + 1, first, last + 1, ...
    stored   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (source, name, queue)
);
"""
# A push is counted by the tail alone, and tells only if somebody listens; what a state may be is proved by ``check``,
# since the server read the text of a constraint anew for each statement (a sixth of a push). The columns have other
# names, so that an older library that goes on with the tables open fails rather than counting otherwise
_TAKEN_2: Final = """
ALTER TABLE {items} DROP CONSTRAINT items_state_check;
ALTER TABLE {queues} ADD COLUMN is_awaited boolean NOT NULL DEFAULT false;  -- somebody has waited for items
ALTER TABLE {queues} RENAME COLUMN waiting TO taken;  -- how many of the numbers below ``tail`` do not wait
ALTER TABLE {counts} RENAME COLUMN waiting TO taken;
UPDATE {queues} SET taken = tail - taken;
UPDATE {counts} SET taken = -taken;
"""
_READERS_3: Final = """
ALTER TABLE {queues}
    ADD COLUMN is_followed boolean NOT NULL DEFAULT false,  -- it has readers
    ADD COLUMN is_kept     boolean NOT NULL DEFAULT false,  -- one of these is set: what is beyond leaves
    ADD COLUMN kept_items  bigint,
    ADD COLUMN kept_bytes  bigint,
    ADD COLUMN kept_age    bigint;                          -- microseconds

CREATE TABLE {readers} (
    queue    integer NOT NULL,
    name     text COLLATE "C" NOT NULL,
    due      bigint NOT NULL,            -- with seq: the place that it has passed, and all before it
    seq      bigint NOT NULL,
    skipped  bigint NOT NULL DEFAULT 0,  -- items that left before it had passed them
    moves    bigint NOT NULL DEFAULT extract(epoch FROM clock_timestamp()) * 1000000,  -- one more with each
    seen     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (queue, name)
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TABLE {tails} (
    queue  integer NOT NULL,
    tail   bigint NOT NULL,
    bytes  bigint NOT NULL,  -- that had been pushed
    at     timestamptz NOT NULL DEFAULT statement_timestamp(),
    PRIMARY KEY (queue, tail)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
"""
_FIRST_META: Final = "INSERT INTO {meta} (version, uuid) VALUES (0, %(uuid)s)"

MIGRATIONS: list[LiteralString] = [_TABLES_1, _TAKEN_2, _READERS_3]  # the first makes version 1, and so on


def prepare(connection: psycopg.Connection[Any], sql: Sql, path: str) -> str:
    """Let the schema be there as this version knows it; return its uuid. ``path`` is for errors."""
    version, uuid = _found(connection, sql)
    if version < len(MIGRATIONS):
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            version, uuid = _found(connection, sql)
            if not version:
                uuid = os.urandom(16).hex()
                _create(connection, sql)
            for migration in MIGRATIONS[version:]:
                connection.execute(sql(migration))
                if not version:
                    connection.execute(sql(_FIRST_META), {"uuid": uuid})
                version += 1
            connection.execute(sql(_SET_VERSION), {"version": version})
    if version > len(MIGRATIONS):
        found = f"version {version} of the schema {sql.schema!r}, this library knows up to {len(MIGRATIONS)}"
        raise VersionError(path, found, "upgrade lmdbqueue to use it")
    return uuid


def _found(connection: psycopg.Connection[Any], sql: Sql) -> tuple[int, str]:
    """Return the version of the schema, 0 if it is not there, and its uuid."""
    if connection.execute(_HAS_META, {"schema": sql.schema}).fetchone() is None:
        return 0, ""
    found = connection.execute(sql(_VERSION)).fetchone()
    assert found is not None  # written in the transaction that made the table
    version, uuid = found
    return version, uuid


def _create(connection: psycopg.Connection[Any], sql: Sql) -> None:
    """Create the schema, if nobody has done so for us: a role may own a schema and not be allowed to make one."""
    if connection.execute(_HAS_SCHEMA, {"schema": sql.schema}).fetchone() is None:
        connection.execute(sql(_CREATE_SCHEMA))
