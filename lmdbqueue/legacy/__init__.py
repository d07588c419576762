"""Keep your data: queues of other libraries are imported into one of this library.

    from lmdbqueue.legacy import import_file
    import_file("old.queue", "new")

Owns: the public names of imports. Law: those below are all. Must not know: how an import goes.

The map; imports go down it only:

====================  ============================================================================
``_import``           what an import is, and its protocol; which format it is
``_file``             files of python-persistent-queue
``_chunks``           directories of chunk files: of persist-queue and queuelib
``_tables``           SQLite databases: of persist-queue, litequeue and queuelib
``_info``             where a queue of persist-queue begins and ends
``_aside``            what is set aside at an import
``_source``           what is found in files of other libraries
====================  ============================================================================
"""

from lmdbqueue.legacy._import import Imported, SourceError, detect, import_file

__all__ = ["Imported", "SourceError", "detect", "import_file"]
