"""``PostgresQueue``: the same queue in a PostgreSQL database, for more than one machine.

    from lmdbqueue.postgres import PostgresQueue

    queue = PostgresQueue('postgresql://db1,db2/app?target_session_attrs=read-write', 'jobs')

The map; imports go down this list only.

==============  ==================================================================================
``aio``         ``AsyncPostgresQueue``: the verbs, awaited
``_marks``      ``PostgresTarget``: what a forwarder fills
``_queue``      ``PostgresQueue``: opening, closing, the verbs on a database
``_state``      ``state`` in a table
``_engine``     the steps that the verbs are made of
``_database``   a database as this process has it: the pool, retrying, forks
``_queues``     the queues of a schema: making, listing, copying, dropping, proving them
``_away``       what does not wait: leased, delayed, dead; as functions of a transaction
``_readers``    named readers, and what goes when all have passed it; as functions of a transaction
``_items``      what waits; as functions of a transaction
``_positions``  where readers are, what is kept for them
``_block``      the block of a user as one transaction
``_ear``        hearing that something changed
``_owner``      who holds leases, and whether it lives
``_session``    one connection: its transactions, and the proof of which of them took place
``_schema``     the tables, and how they come about
``_failures``   what the server's errors mean
``_sql``        statements with the names of one schema filled in
==============  ==================================================================================

The protocols, and what is there if the client, its connection or the server dies after a step.

**A push** is one statement: lock the queue's row and take numbers from its tail; write the token of the change and its
first number to this session's row, or fail if that is fenced; insert; notify, if somebody has ever listened. The
queue's row stays locked until the commit, so numbers have the order of commits.

**A pop** is one statement and its commit: write the token to this session's row, if it is not fenced; delete the first
items that nobody has claimed (``FOR UPDATE SKIP LOCKED``), count; then the client decodes, and commits. If something
has to come back first, or cannot be decoded, it is undone.

**A lease, an ack** and the like are one transaction in two exchanges: lock this session's row, and claim the first
items that nobody has claimed; decode; then lease them, count, write the token, commit.

==========================================  =================================================================
dies after                                  then
==========================================  =================================================================
the statement was sent, before its commit   the server undoes it; what was claimed can be claimed by others.
                                            If the client lives, it does it again
the commit, before its reply                it took place. If the client lives, it fences its old session's
                                            row (which waits for a transaction that is still under way),
                                            finds the token, and returns the result that it has in hand, or
                                            that the push has left there
the statement lies in a buffer, unread,     the server reads it later, finds the session fenced, and changes
when the client connects anew               nothing
a lease was given                           the connection of its owner, which is open as long as the queue
                                            object, ends: the server frees its advisory lock, and whoever
                                            looks finds a dead owner and gives back what it held
==========================================  =================================================================

**Counts** are kept by each session in a row of its own, so that consumers do not wait for each other to count; a push
is counted by the tail, and they say how many of the numbers below it do not wait (``taken``), are leased, ... When
a session is dead, its counts are added to those of the queue by whoever comes next. Tokens of dead sessions are kept
for a day, which is longer than anybody may ask for one.
"""

from lmdbqueue.postgres._marks import PostgresTarget
from lmdbqueue.postgres._queue import PostgresQueue, Transaction

__all__ = ["PostgresQueue", "PostgresTarget", "Transaction"]
