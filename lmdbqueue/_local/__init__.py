"""The engine on LMDB: environment, group commit, transactions, recovery, compaction, check.

=================  ==================================================================
``follow``         the items that arrive in a queue, seen without taking them
``source``         the queue that a forwarder drains
``target``         the queue in another directory that a forwarder fills
``relay``          the end of one lease and the beginning of the next, in one commit
``queue``          ``PersistentQueue``: opening, closing, the verbs on an environment
``state``          ``state``: a mapping beside the items
``engine``         the steps of the verbs, each as one call of an environment
``reader_engine``  the steps of one named reader
``hold``           the base of a queue object's steps; restoring items that are due
``compaction``     ``flush`` and ``copy``: returning space
``check``          ``check``: the verification of a queue in use, and its repair
``catch_up``       a copy made before a swap, while writers continue
``sharing``        one environment a directory: who shares it, and forks
``environment``    a directory open in this process: the transactions of its threads
``live``           the live generation: opened, followed through swaps, kept safe at forks
``checkpoints``    the snapshots on the disk while commits are not flushed
``recovery``       after a power cut: which snapshot counts
``swap``           the swap of generations, step by step
``salvage``        saving the readable items of a damaged file
``commit_line``    the calls that wait for a transaction, and who runs them
``group_commit``   several calls in one transaction
``transaction``    the calls of a user's block in one transaction
=================  ==================================================================
"""
