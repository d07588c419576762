"""LMDB: everything that relies on its internals or bypasses it. Only this package knows its files and pages.

====================  =============================================================
``generation``        one LMDB environment, and one transaction at a time on it
``durability``        when a commit is durable: one flush, or fewer
``snapshot``          a file at rest, and the tables of its queues
``opening``           opening a file as an environment, and creating one
``failures``          LMDB's errors as ours
``checkpoint_slots``  the files that say which snapshot is on the disk
``checkpoint_pin``    the entry that protects the pages of that snapshot
``content``           the items that a transaction adds
``preallocation``     blocks allocated before they are used
``free_pages``        how much of a file is free
``difference``        the difference between a snapshot and the previous one
``changed_records``   which records changed between two snapshots
``structure``         the verification that all pages are as LMDB leaves them
``options_record``    the content of ``queue.json``, stored in an environment
``meta_page``         LMDB's meta pages as bytes
``sound_pages``       pages that are read only if they are as LMDB writes them
``raw_pages``         LMDB's trees as bytes, damaged or not
====================  =============================================================
"""
