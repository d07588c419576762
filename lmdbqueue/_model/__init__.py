"""What a queue is: functions of a transaction, without a clock, an opening or a commit.

===================  =================================================================================================
``stats``            ``stats``: how much of everything there is
``invariants``       what "whole" means: every invariant
``leases``           what does not wait, leased, delayed, dead: how it goes and comes back; functions of a transaction
``readers``          named readers, and what goes when all have passed it
``push_times``       when what was pushed: a sparse record of times
``fifo``             what a queue is: the verbs as functions of a transaction
``item_notes``       what is known of items: attempts, unique keys, counts
``reader_records``   where readers are, what is kept for them
``lease_records``    the records of what does not wait
``weighed_records``  the records beside the items, and their weight, by which a torn transaction is seen
===================  =================================================================================================
"""
