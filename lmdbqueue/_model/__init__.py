"""The data structure of a queue: functions of a transaction, without clock, opening or commit.

====================  ========================================================================
``stats``             ``stats``: the figures of a queue
``invariants``        what "whole" means: every invariant of a whole file
``away_proof``        the same for items held back, record by record
``last_transaction``  whether the last transaction is whole, given the previous one
``leases``            how items go into a lease, and how its holder settles them
``keyed_items``       pushes with a delay, a key, an expiry or a priority; items by key
``returns``           how items held back return
``readers``           named readers: what each reads next, and how it moves
``pushing``           how items are added: appended, moved, refused
``retention``         items that leave by themselves: passed by all readers, or beyond the limits
``expiry``            how items expire
``dead_letters``      how items die
``fifo``              the order of items, which keys have one, how they leave
``item_notes``        notes on items: attempts, unique keys, expiry
``reader_records``    the positions of readers, and the limits of retention
``lease_records``     the records of leases and of items held back
``weighed_records``   the records beside the items, and their weight
====================  ========================================================================
"""
