"""What all layers share.

==========  ============================================================
``format``  what the bytes on disk mean
``errors``  every exception
``values``  values that cross layers, and the base of named tuples
==========  ============================================================
"""
