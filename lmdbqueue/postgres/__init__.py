"""``PostgresQueue``: the same queue in a PostgreSQL database, for more than one machine.

    from lmdbqueue.postgres import PostgresQueue

    queue = PostgresQueue('postgresql://db1,db2/app?target_session_attrs=read-write', 'jobs')

The map; imports go down this list only.

==================  ================================================================================
``aio``             ``AsyncPostgresQueue``: the verbs, awaited
``_marks``          ``PostgresTarget``: what a forwarder fills
``_queue``          ``PostgresQueue``: opening, the verbs on a database
``_state``          ``state`` in a table
``_engine``         ``PostgresEngine``: the steps that the verbs are made of
``_reader_engine``  ``PostgresReaderEngine``: the steps of one named reader
``_at_once``        pushes, pops, leases and acks as one statement each
``_hold``           what the steps of one queue object share, and a look at what has to come back first
``_queues``         the queues of a schema: making, listing, copying, dropping, proving them
``_away``           items held back, and how they come back; as functions of a transaction
``_dead``           dead letters; as functions of a transaction
``_readers``        named readers, and what goes when all have passed it; as functions of a transaction
``_pushing``        how items come to the tail: pushed, moved, due
``_taking``         how items are taken, and put back
``_removal``        how items leave that nobody is handed
``_items``          what waits, and how it is seen; these five are functions of a transaction
``_positions``      where readers are, what is kept for them
``_database``       a database as this process has it: retrying, forks, poolers
``_block``          the block of a user as one transaction
``_ear``            hearing that something changed
``_owner``          who holds leases, and whether they live
``_pool``           the connections of a process
``_session``        one connection: its transactions, and the proof of which of them took place
``_step``           a transaction under way, or a reading
``_ledger``         what each session notes of itself and its changes
``_schema``         the tables, and how they come about
``_connection``     how a connection is opened, and what is set on it
``_failures``       what the server's errors mean
``_sql``            statements with the names of one schema filled in
==================  ================================================================================

The protocols, and what is there if the client, its connection or the server dies after a step.

**A push, a lease, an ack** are one statement each, which commits by itself. It claims what it is about, writes the
token of the change and what it counts to this session's row of the queue in the ledger, and fails if that is fenced.
A push locks the queue's tail first and takes numbers from it, so numbers have the order of commits; in a queue of
relaxed order a sequence gives them, and pushes of many processes share the server's flushes. A lease is the token in
the rows of its items, chosen by the client.

**A pop** decodes before it removes: its statement, and then the commit, are one transaction. The statement also
returns the item that is first then, so the next pop can decode that one before it asks for it: it is one statement,
which does nothing if another item is the first by then.

**Everything else** is one transaction: lock this session's own row, do it, write the token, commit.

==========================================  =================================================================
dies after                                  then
==========================================  =================================================================
the statement was sent, before its commit   the server undoes it; what was claimed can be claimed by others.
                                            If the client lives, it does it again
the commit, before its reply                it took place. If the client lives, it fences its old session's
                                            rows (which waits for a transaction that is still under way),
                                            finds the token, and returns the result that it has in hand, or
                                            that the push has left there; what a lost lease holds is read
the statement lies in a buffer, unread,     the server reads it later, finds the session fenced, and changes
when the client connects anew               nothing
a lease was given                           the connection of its owner, which is open as long as the process
                                            has the database open, ends: the server frees its advisory lock,
                                            and whoever looks finds a dead owner and gives back what it held
a lease was under way, or in a buffer, as   who finds the dead owner shuts out all sessions of its process before
its process died                            it forgets it: what is under way is waited for, what comes late fails
a lease was given, and nobody could be      the next lease of this object gives back what that one holds
asked whether it was
a connection was lost elsewhere: in a       before its next change the process shuts that session out, too: else
block, by an interrupt, in an undoing       it would pass over what its own lost call still has claimed
==========================================  =================================================================

**Counts** are kept by each session in the ledger, so that consumers do not wait for each other to count. When a session
is dead, its counts are added to those of the queue by whoever comes next. Tokens of dead sessions are kept for a day,
which is longer than anybody may ask for one.

**Waking.** Whoever sleeps has a row in ``sleepers``; whoever changes a queue finds it in the same statement, and tells
after its commit, in a transaction of its own that nobody waits for: a notice within the change would hold a lock of the
whole cluster through the flush.
"""

try:
    import psycopg  # noqa: F401
except ImportError as error:
    message = f"lmdbqueue.postgres needs psycopg: pip install 'lmdbqueue-persistent[postgres]' ({error})"
    raise ImportError(message, name="psycopg") from error

from lmdbqueue.postgres._marks import PostgresTarget
from lmdbqueue.postgres._queue import PostgresQueue, Transaction

__all__ = ["PostgresQueue", "PostgresTarget", "Transaction"]
