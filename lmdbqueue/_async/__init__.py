"""A queue for an event loop, on any engine; its calls are carried by threads.

===========  =================================================
``queue``    ``AsyncQueue``: consumers, readers, the verbs of asyncio.Queue
``writing``  pushing, reading, taking, browsing
``calls``    what each verb is made of: an open object, time limits
``leases``   leases and the loop of a worker, awaited
``reader``   a named reader, awaited
``courier``  the threads that carry the calls of an event loop
``jobs``     those calls: what may be done together, and what undoes it
===========  =================================================
"""
