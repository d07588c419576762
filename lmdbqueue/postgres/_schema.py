"""The tables, and their creation.

Owns: the data definitions and their version. Law: a schema is created in one transaction, under an advisory lock, by
the first process that needs it; one of another version is refused and not touched. Must not know: what the
tables are used for, beyond their comments here.

Their content, where each row has the number of its queue::

    meta      the version of the schema, and its uuid
    queues    name, options, retention; counts that no living session keeps
    tails     the number that the next item gets; its row is the lock of pushes in the order of commits
    items     every item: number, payload, and where it is: waiting, leased, delayed, dead
    claims    the items that a session is decoding, to remove them then
    ledger    what each session has done last, and what it has added to each queue and taken from it
    owners    possible holders of leases, and the session that shows that they live
    sleepers  the sessions that listen for a queue now
    state     ``queue.state``
    marks     of forwarders: what was stored last of which source
    readers   named readers: the number that each has passed

**Numbers.** ``seq`` is the class of an item (its priority, -128 to 127) times 2^56 plus its number, so its order is
that of delivery. It never changes while the item is in a queue without readers.

**Indexes.** An item is in one of two: that of waiting items, or that of all others. So a push writes one entry, and
items held back cost consumers nothing. There is no primary key, which would be a third index; for logical replication
the whole row identifies an item.

**Rows that are written often** (``tails``, ``ledger``) are written in place: with room left in the page
(``fillfactor``) the new version goes beside the old one, no index is touched (HOT), and the old one is pruned
immediately. While an old snapshot is open nothing can be pruned; then the chain of versions grows until the page is
full. A session whose row moves to another page replaces it by a new row with a new key, so no chain is longer than a
page.

Items come and go, so their table is vacuumed after every few thousand of them, by count and not by share, as fast as
the disk allows. The server may consider the table empty because it was when last vacuumed; so each statement has one
suitable index, and sessions plan without table scans, sorts and hashes.
"""

import os
from typing import Any, Final, LiteralString

import psycopg

from lmdbqueue._base.errors import VersionError
from lmdbqueue.postgres._sql import Sql

VERSION: Final = 3  # another one with each change of the tables; 1 was that of states before the first release

_LOCK: Final = 0x6C6D_6462_7175_6575  # held while a schema is created, in any database: "lmdbqueu"

# From the tables, since a session's cache of names may be older than the lock that it waited for
_HAS_SCHEMA: Final = "SELECT 1 FROM pg_namespace WHERE nspname = %(schema)s"
_HAS_META: Final = """
SELECT 1 FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname = %(schema)s AND relname = 'meta'
"""
_CREATE_SCHEMA: Final = "CREATE SCHEMA {schema}"
_VERSION: Final = "SELECT version, uuid FROM {meta}"
_META: Final = "INSERT INTO {meta} (version, uuid) VALUES (%(version)s, %(uuid)s)"

TABLES: LiteralString = """
CREATE TABLE {meta} (version integer NOT NULL, uuid text NOT NULL);

CREATE TABLE {queues} (
    id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text COLLATE "C" NOT NULL UNIQUE,
    serializer  text NOT NULL DEFAULT '',
    is_relaxed  boolean NOT NULL DEFAULT false,  -- numbers come from a sequence, and not in the order of commits
    has_classes boolean NOT NULL DEFAULT false,  -- something was pushed with a priority
    is_followed boolean NOT NULL DEFAULT false,  -- it has readers
    kept_items  bigint,
    kept_bytes  bigint,
    kept_age    bigint,                          -- microseconds
    pushed      bigint NOT NULL DEFAULT 0,
    waiting     bigint NOT NULL DEFAULT 0,
    size        bigint NOT NULL DEFAULT 0,       -- bytes of what waits
    leased      bigint NOT NULL DEFAULT 0,
    delayed     bigint NOT NULL DEFAULT 0,
    dead        bigint NOT NULL DEFAULT 0,
    expired     bigint NOT NULL DEFAULT 0,
    dropped     bigint NOT NULL DEFAULT 0        -- beyond what is kept
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TABLE {tails} (
    queue    integer NOT NULL,
    epoch    bigint NOT NULL DEFAULT 0,       -- the row with the greatest one counts
    next     bigint NOT NULL DEFAULT 0,
    is_slow  boolean NOT NULL DEFAULT false,  -- a push has more to do: the queue keeps only so much
    PRIMARY KEY (queue, epoch)
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TABLE {items} (
    seq        bigint NOT NULL,
    queue      integer NOT NULL,
    attempts   integer NOT NULL DEFAULT 0,
    state      smallint NOT NULL DEFAULT 0,    -- 0 waiting, 1 leased, 2 delayed, 3 dead
    lease      bigint,                         -- its token
    pushed_at  timestamptz NOT NULL DEFAULT statement_timestamp(),
    until      timestamptz,                    -- when its lease is over, or its delay
    expires_at timestamptz,
    changed    timestamptz,                    -- when it last came back, or died
    key        bytea,                          -- of ``unique``: a digest; that of a dead letter is free
    headers    bytea,
    reason     bytea,                          -- why it came back, or died: UTF-8
    payload    bytea NOT NULL
) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_analyze_scale_factor = 0,
        autovacuum_analyze_threshold = 20000, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE {items} REPLICA IDENTITY FULL;
CREATE INDEX items_waiting ON {items} (queue, seq) WHERE state = 0;
CREATE INDEX items_away ON {items} (queue, state, seq) WHERE state <> 0;
CREATE INDEX items_until ON {items} (queue, until) WHERE until IS NOT NULL;
CREATE INDEX items_expire ON {items} (queue, expires_at) WHERE expires_at IS NOT NULL AND state <> 1;
CREATE UNIQUE INDEX items_key ON {items} (key, queue) WHERE key IS NOT NULL AND state <> 3;

CREATE UNLOGGED TABLE {claims} (
    queue    integer NOT NULL,
    session  bigint NOT NULL,          -- also of an advisory lock: without it, nothing is claimed
    items    int8multirange NOT NULL,  -- their numbers
    PRIMARY KEY (queue, session)
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TABLE {ledger} (
    id         bigint PRIMARY KEY,
    session    bigint NOT NULL,             -- also of an advisory lock, which its connection holds
    queue      integer NOT NULL,            -- 0: the row of the session itself
    token      bigint NOT NULL DEFAULT 0,   -- of the last change
    result     bigint,                      -- of a change whose reply may get lost together with the connection
    is_fenced  boolean NOT NULL DEFAULT false,
    is_folded  boolean NOT NULL DEFAULT false,  -- the queue has its counts, since the session is dead
    seen       timestamptz NOT NULL DEFAULT clock_timestamp(),
    pushed     bigint NOT NULL DEFAULT 0,
    waiting    bigint NOT NULL DEFAULT 0,
    size       bigint NOT NULL DEFAULT 0,
    leased     bigint NOT NULL DEFAULT 0,
    delayed    bigint NOT NULL DEFAULT 0,
    dead       bigint NOT NULL DEFAULT 0,
    expired    bigint NOT NULL DEFAULT 0,
    dropped    bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX ledger_queue ON {ledger} (queue) WHERE NOT is_folded;
CREATE INDEX ledger_session ON {ledger} (session);

CREATE TABLE {owners} (
    holder  bigint PRIMARY KEY,  -- of leases whose tokens begin with it
    queue   integer NOT NULL,
    owner   bigint NOT NULL      -- of an advisory lock, which is held while it lives
);
CREATE INDEX owners_queue ON {owners} (queue);

CREATE TABLE {sleepers} (
    queue    integer NOT NULL,
    session  bigint NOT NULL,
    PRIMARY KEY (queue, session)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

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
    digest   bytea NOT NULL,     -- of the payloads in the last batch
    stored   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (source, name, queue)
);

CREATE TABLE {readers} (
    queue    integer NOT NULL,
    name     text COLLATE "C" NOT NULL,
    passed   bigint NOT NULL,            -- the number that it has passed, and all before it
    skipped  bigint NOT NULL DEFAULT 0,  -- items that left before it had passed them
    moves    bigint NOT NULL DEFAULT extract(epoch FROM clock_timestamp()) * 1000000,  -- one more with each
    seen     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (queue, name)
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
"""


def prepare(connection: psycopg.Connection[Any], sql: Sql, path: str) -> str:
    """Create the schema if it is missing; return its uuid. ``path`` is for errors."""
    version, uuid = _found(connection, sql)
    if not version:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            version, uuid = _found(connection, sql)
            if not version:
                version, uuid = VERSION, os.urandom(16).hex()
                _create(connection, sql)
                connection.execute(sql(TABLES))
                connection.execute(sql(_META), {"version": VERSION, "uuid": uuid})
    if version != VERSION:
        found = f"version {version} of the schema {sql.schema!r}, this library knows {VERSION}"
        advice = "upgrade lmdbqueue to use it"
        if version < VERSION:
            advice = "it was made before the first release: use another one (schema=), or drop it with all its items"
        raise VersionError(path, found, advice)
    return uuid


def _found(connection: psycopg.Connection[Any], sql: Sql) -> tuple[int, str]:
    """Return the version of the schema, 0 if there is none, and its uuid."""
    if connection.execute(_HAS_META, {"schema": sql.schema}).fetchone() is None:
        return 0, ""
    found = connection.execute(sql(_VERSION)).fetchone()
    assert found is not None  # written in the transaction that made the table
    version, uuid = found
    return version, uuid


def _create(connection: psycopg.Connection[Any], sql: Sql) -> None:
    """Create the schema unless it exists: a role may own a schema without being allowed to create one."""
    if connection.execute(_HAS_SCHEMA, {"schema": sql.schema}).fetchone() is None:
        connection.execute(sql(_CREATE_SCHEMA))
