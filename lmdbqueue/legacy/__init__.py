"""Imports of other libraries' queues into a queue of this one.

    from lmdbqueue.legacy import import_file
    import_file("old.queue", "new")

Owns: the public names of imports. Law: these are all of them. Must not know: how an import works.

The map; imports go down this list only:

====================  ============================================================================
``_import``           the protocol of an import; recognizing the format
``_file``             files of python-persistent-queue
``_chunks``           directories of chunk files: of persist-queue and queuelib
``_tables``           SQLite databases: of persist-queue, litequeue and queuelib
``_info``             where a queue of persist-queue begins and ends
``_aside``            the file of records set aside by an import
``_source``           the values found in files of other libraries
====================  ============================================================================
"""

from lmdbqueue.legacy._import import Imported, SourceError, detect, import_file

__all__ = ["Imported", "SourceError", "detect", "import_file"]

for _each in (Imported, detect, import_file):
    _each.__module__ = __name__  # so tracebacks and pickles do not name the private module
