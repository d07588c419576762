"""What each verb means on any engine: arguments, encoding, waiting, leases, workers, readers.

===============  ==========================================================================================
``metrics``      figures as metrics, Prometheus' text
``batch``        batches, marks, and the interface of a forwarder's target
``queue``        ``Queue``: every verb of a queue; the base of ``PersistentQueue`` and ``PostgresQueue``
``worker``       the loop of a worker
``lease``        leases and dead letters
``reader``       ``Reader``: one of several readers that each see all items
``writing``      ``push``, ``browse``, and the verbs that remove single items
``reading``      ``peek``, ``pop``, ``delete``: the verbs that a queue and a reader share
``head``         the place from which items are read, decoded, waited for and taken
``hands``        the items that ``get`` has returned and ``join`` waits for
``state``        ``state``: a mapping beside the items, on any engine
``encoding``     items and keys as bytes
``serializers``  pickle, JSON and others, by name
``options``      the values that each option may have
``engine``       the ``Engine`` protocol: the steps that the verbs are made of
``block``        the block of a ``transaction()``: which thread is in one, what spoils it
===============  ==========================================================================================
"""
