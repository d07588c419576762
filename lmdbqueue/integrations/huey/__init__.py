"""Huey on a queue that loses no running task: the extra ``huey``.

    from lmdbqueue.integrations.huey import LmdbHuey

    huey = LmdbHuey("app", path="tasks")  # instead of SqliteHuey("app", filename="tasks.db")

The map; imports go down this list only. How a task survives its worker is the table at the top of ``_endings``.

============  =============================================================================
``_huey``     ``LmdbHuey``: Huey whose workers lease tasks, and whose scheduler moves them
``_storage``  ``LmdbStorage``: Huey's storage interface
``_endings``  the end of a task: what it stores, and its acknowledgement, in one step
``_queues``   the directory of a Huey: its four queues, their names and keys
============  =============================================================================
"""

from lmdbqueue._base.errors import without_extra

try:
    import huey  # noqa: F401
except ImportError as error:
    raise without_extra(__name__, "huey", "pip install 'lmdbqueue-persistent[huey]'", error) from error

from lmdbqueue.integrations.huey._huey import LmdbHuey
from lmdbqueue.integrations.huey._storage import LmdbStorage

__all__ = ["LmdbHuey", "LmdbStorage"]

for _each in __all__:
    globals()[_each].__module__ = __name__  # so tracebacks and pickles do not name the private module
