"""LMDB: everything that trusts or bypasses it. Only this package knows its files and pages.

====================  =============================================================
``generation``        one LMDB environment, and one transaction at a time on it
``durability``        when a commit is durable: one flush, or fewer
``snapshot``          a file at rest, and where the records of its queues are
``opening``           how a file becomes an environment, and how one is made
``failures``          LMDB's errors as ours
``checkpoint_slots``  the files that tell which snapshot is on the disk
``checkpoint_pin``    what keeps the pages of that snapshot
``content``           the items that a transaction adds
``preallocation``     blocks that a file has before they are used
``free_pages``        how much of a file is free
``difference``        what a snapshot has that the one before it has not
``changed_records``   which records changed between two snapshots
``structure``         the proof that all pages are as LMDB leaves them
``options_record``    what ``queue.json`` holds, as an environment remembers it
``meta_page``         LMDB's meta pages as bytes
``sound_pages``       pages that are read only if they are as LMDB writes them
``raw_pages``         LMDB's trees as bytes, damaged or not
====================  =============================================================
"""
