"""What each verb means on any engine: arguments, encoding, waiting, leases, workers, readers.

================  =====================================================================
``metrics``       figures as metrics, Prometheus' text
``reader``        ``reader``, ``readers``, ``retain``: many who read all
``consuming``     ``lease``, ``dead``, ``work``: consumers that can die
``worker``        the loop of a worker
``lease``         what a consumer holds
``batch``         what a forwarder hands to its target, and how far that has come
``stdlib_queue``  ``put``, ``get``, ``join``, ``shutdown``: the face of ``queue.Queue``
``writing``       what each verb means that writes: arguments, encoding
``reading``       what it means to read: decoding, waiting
``block``         the block of a user: which thread is in one, what spoils it
================  =====================================================================
"""
