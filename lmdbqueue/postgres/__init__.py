"""``PostgresQueue``: the same queue in a PostgreSQL database, for more than one machine.

    from lmdbqueue.postgres import PostgresQueue

    queue = PostgresQueue('postgresql://db1,db2/app?target_session_attrs=read-write', 'jobs')

The map; imports go down this list only.

==================  ================================================================================
``aio``             ``AsyncPostgresQueue``: the verbs, awaited
``_marks``          ``PostgresTarget``: the target of a forwarder
``_queue``          ``PostgresQueue``: opening, the verbs on a database
``_state``          ``state`` in a table
``_engine``         ``PostgresEngine``: the steps that the verbs are made of
``_reader_engine``  ``PostgresReaderEngine``: the steps of one named reader
``_at_once``        pushes, pops, leases and acks as one statement each
``_hold``           the base of one queue object's steps; restoring items that are due
``_queues``         the queues of a schema: creating, listing, copying, dropping, verifying them
``_away``           items held back, and how they return; as functions of a transaction
``_dead``           dead letters; as functions of a transaction
``_readers``        named readers, and items that all have passed; as functions of a transaction
``_pushing``        how items arrive at the tail: pushed, moved, due
``_taking``         how items are taken, and put back
``_removal``        how items leave without a consumer
``_items``          waiting items, and how they are read; these five are functions of a transaction
``_positions``      the positions of readers, the limits of retention
``_database``       a database in this process: retrying, blocks, forks
``_block``          the block of a ``transaction()``
``_ear``            hearing of changes
``_owner``          the holders of leases, and whether they live
``_access``         the sessions of this process: opening, settling lost ones, poolers
``_pool``           the connections of a process
``_session``        one connection: its transactions, and finding out which of them took place
``_step``           a transaction under way, or a reading
``_ledger``         the notes of each session on itself and its changes
``_schema``         the tables, and their creation
``_connection``     opening a connection, and its settings
``_silence``        waiting for an answer: deadlines, silent connections
``_failures``       the meaning of the server's errors
``_sql``            statements with the names of one schema filled in
==================  ================================================================================

The protocols, and the outcome if the client, its connection or the server dies after a step.

**A push, a lease, an ack** are one statement each, which commits by itself. It claims its items, writes the token of
the change and its counts to this session's row of the queue in the ledger, and fails if that is fenced. A push first
locks the queue's tail and takes numbers from it, so numbers have the order of commits; in a queue of relaxed order they
come from a sequence, and pushes of many processes share the server's flushes. A lease is the token in the rows of its
items, chosen by the client.

**A pop** decodes before it removes: its statement, and then the commit, are one transaction. The statement also returns
the item that is first after that, so the next pop can decode it before asking for it: then it is one statement, which
does nothing if another item is first by then.

**Everything else** is one transaction: lock this session's own row, do it, write the token, commit.

==========================================  =================================================================
dies after                                  then
==========================================  =================================================================
the statement was sent, before its commit   the server undoes it; what was claimed can be claimed by others.
                                            If the client lives, it does it again
the commit, before its reply                it took place. If the client lives, it fences its old session's
                                            rows (which waits for a transaction that is still under way),
                                            finds the token, and returns the result that it has, or
                                            that the push has left there; the items of a lost lease are read
the statement lies in a buffer, unread,     the server reads it later, finds the session fenced, and changes
when the client connects anew               nothing
a lease was given                           the connection of its owner, which is open as long as the process
                                            has the database open, ends: the server frees its advisory lock,
                                            and the next reading finds a dead owner and returns its items
a lease was under way, or in a buffer, as   a process that finds the dead owner shuts out its sessions before
its process died                            it forgets it: it waits for what is under way, and late changes fail
a lease was given, and no server could be   the next lease of this object gives back the items of that one
asked whether it was
a connection was lost elsewhere: in a       before its next change the process ends that session's backend and
block, by an interrupt, in an undoing       shuts it out, too: else it would skip items that its own lost call still
                                            has claimed, as long as the server hears nothing of the end
==========================================  =================================================================

**Counts** are kept by each session in the ledger, so that consumers need not wait for each other to count. When a
session is dead, the next one adds its counts to those of the queue. Tokens of dead sessions are kept for a day, longer
than any process can ask for one.

**Waking.** Each sleeper has a row in ``sleepers``; a change of the queue finds it in the same statement, and sends a
notification after its commit, in a transaction of its own for which nothing waits: a notification within the change
would hold a lock of the whole cluster through the flush.
"""

try:
    import psycopg  # noqa: F401
except ImportError as error:
    message = f"lmdbqueue.postgres needs psycopg: pip install 'lmdbqueue-persistent[postgres]' ({error})"
    raise ImportError(message, name="psycopg") from error

from lmdbqueue.postgres._marks import PostgresTarget
from lmdbqueue.postgres._queue import PostgresQueue, Transaction

__all__ = ["PostgresQueue", "PostgresTarget", "Transaction"]
