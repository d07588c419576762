"""What each verb means on any engine: arguments, encoding, waiting, leases, workers, readers.

===============  ==========================================================================================
``metrics``      figures as metrics, Prometheus' text
``batch``        what a forwarder hands to its target, and how far that has come
``queue``        ``Queue``: every verb of a queue; the base of ``PersistentQueue`` and ``PostgresQueue``
``worker``       the loop of a worker
``lease``        what a consumer holds: leases, dead letters
``reader``       ``Reader``: one of many that each read all items
``writing``      ``push``, ``browse``, and what takes single items out
``reading``      ``peek``, ``pop``, ``delete``: the verbs that a queue and a reader share
``head``         from where items are read, decoded, waited for and taken
``hands``        what ``get`` gave out and ``join`` waits for
``state``        ``state``: a mapping beside the items, whatever engine keeps it
``encoding``     items and keys as bytes
``serializers``  pickle, JSON and others, by name
``engine``       the ``Engine`` protocol: what the verbs ask of the keeper of the items
``block``        the block of a user: which thread is in one, what spoils it
===============  ==========================================================================================
"""
