"""The engine on LMDB: environment, group commit, transactions, recovery, compaction, check.

=================  ==================================================================
``follow``         the items that come into a queue, seen without taking them
``source``         the queue that is drained
``target``         the queue in another directory that is filled
``queue``          ``PersistentQueue``: opening, closing, the verbs on an environment
``state``          ``state``: a mapping beside the items
``engine``         the steps of the verbs, each as one call of an environment
``reader_engine``  the steps of one named reader
``hold``           what the steps of a queue object share; a look at what has to come back
``compaction``     ``flush``, ``copy``, ``drop_queue``: when space is given back
``check``          ``check``: the proof on a queue in use, and its repair
``catch_up``       a copy made before a swap, while writers go on
``sharing``        one environment a directory: who shares it, and forks
``environment``    a directory as this process has it open: the transactions of its threads
``live``           the live generation: opened, followed through swaps, kept safe at forks
``checkpoints``    what is on the disk while commits are not flushed
``recovery``       after a power cut: which snapshot counts
``swap``           the swap of generations, step by step
``salvage``        what can be saved of a damaged file
``commit_line``    the calls that wait for a transaction, and who runs them
``group_commit``   several calls in one transaction
``transaction``    the calls of a user's block in one transaction
=================  ==================================================================
"""
