"""What a queue is: functions of a transaction, without a clock, an opening or a commit.

====================  ========================================================================
``stats``             ``stats``: how much of everything there is
``invariants``        what "whole" means: every invariant, of all of a file
``away_proof``        the same of what is held back, record by record
``last_transaction``  whether the last transaction is whole, given the one before it
``leases``            how items go into a lease, and what its holder does with them
``keyed_items``       pushes with a delay, a key, an expiry or a priority; items by key
``returns``           how what is held back comes back
``readers``           named readers: what each reads next, and how it moves
``pushing``           how items come: made, appended, moved, refused
``retention``         what leaves by itself: passed by all readers, beyond what is retained
``expiry``            how items expire
``dead_letters``      how items die
``fifo``              the order of items, which keys have one, how they leave
``item_notes``        what is known of items: attempts, unique keys, expiry
``reader_records``    where readers are, what is kept for them
``lease_records``     the records of leases and of items held back
``weighed_records``   the records beside the items, and their weight
====================  ========================================================================
"""
