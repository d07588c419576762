"""Calls of an event loop, carried by threads: the courier, awaited leases and readers.

===========  =================================================
``leases``   leases and the loop of a worker, awaited
``reader``   a named reader, awaited
``courier``  the threads that carry the calls of an event loop
``jobs``     those calls: what may be done together, and what undoes it
===========  =================================================
"""
