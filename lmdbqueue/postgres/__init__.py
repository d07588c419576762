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
``_at_once``        pushes and pops as one statement each
``_leasing``        leases and acks, likewise, and both by one statement
``_claims``         a pop of one item: claimed, decoded with no transaction open, and removed
``_batches``        a pop of several, likewise
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
``_statements``     how our statements are sent, and what comes back
``_silence``        waiting for an answer: deadlines, silent connections
``_failures``       the meaning of the server's errors
``_sql``            statements with the names of one schema filled in
==================  ================================================================================

The protocols:

**A push, a lease, an ack**, and the ack of an item together with the lease of the next, are one statement each, which
commits by itself. It claims its items, writes the token of the change and its counts to this session's row of the queue
in the ledger, and fails if that is fenced. A push first locks the queue's tail and takes numbers from it, so numbers
have the order of commits; in a queue of relaxed order they come from a sequence, and pushes of many processes share the
server's flushes. A lease is the token in the rows of its items, chosen by the client.

**A pop** decodes before it removes. It claims an item by an advisory lock of its session, decodes it with no
transaction open, and removes exactly that item by one statement (``_claims``). That also returns the item that is first
after it, so the next pop can decode it before asking for it: then it is one statement, which does nothing if another
item is first by then. A pop of several claims them by writing their numbers to a row of its own, and goes on in the
same way (``_batches``). A pop in a block is a part of the block's transaction.

**Everything else** is one transaction: lock this session's own row, make the change, write the token, commit.

What happens after a failure ("the client" is the process that made the call):

=====================================  ======================================================================
failure                                outcome
=====================================  ======================================================================
the client or its connection dies      The server rolls back, and the items that the statement had claimed are
before the commit                      free again. A client that is still alive repeats the statement.
the connection dies after the commit,  The change took effect. The client fences the rows of its old session,
before the reply                       which waits for a transaction still in progress, finds the token, and
                                       returns the result: the one it has, or the one that a push stored with
                                       the token. The items of a lease are read again.
the client reconnects while its        The server executes the statement later, finds the session fenced, and
statement is still in a buffer         changes nothing.
the holder of a lease dies             Its connection ends, which stays open as long as the process has the
                                       database open. The server releases its advisory lock; the next read
                                       finds a dead owner, and returns its items to the queue.
a process dies while a lease of its    The process that finds the dead owner fences its sessions before it
is in progress, or in a buffer         deletes the owner: it waits for what is in progress, and later changes
                                       fail.
a lease may have been given, and no    The next lease of the same object first returns those items to the
server can be asked                    queue.
a connection is lost in a              Before its next change, the process ends that session's backend and
``transaction()`` block, by an         fences the session. Otherwise its next call could skip items that the
interrupt, or during a rollback        lost call has claimed, until the server notices the lost connection.
=====================================  ======================================================================

**Counts** are kept by each session in the ledger, so that consumers need not wait for each other to count. When a
session is dead, the next one adds its counts to those of the queue. Tokens of dead sessions are kept for a day, longer
than any process can ask for one.

**Waking.** Each sleeper has a row in ``sleepers``; a change of the queue finds it in the same statement, and sends a
notification after its commit, in a transaction of its own for which nothing waits: a notification within the change
would hold a lock of the whole cluster through the flush.
"""

from lmdbqueue._base.errors import without_extra

try:
    import psycopg  # noqa: F401
except ImportError as error:
    raise without_extra(__name__, "psycopg", "pip install 'lmdbqueue-persistent[postgres]'", error) from error

from lmdbqueue.postgres._marks import PostgresTarget
from lmdbqueue.postgres._queue import PostgresQueue, Transaction

__all__ = ["PostgresQueue", "PostgresTarget", "Transaction"]

for _each in __all__:
    globals()[_each].__module__ = __name__  # so tracebacks and pickles do not name the private module
