"""Writes queues with old releases of other libraries: ``python tests/support/make_golden_legacy.py``.

Each release is installed in a directory of its own, since they cannot stand beside those that the tests use, and
writes what is in ``golden_legacy`` under its name and version. What is in them stands in ``test_legacy_golden.py``.
What is there already is left as it is. litequeue 0.14 needs Python 3.12.
"""
# ruff: noqa: PLC0415  (each library is there only in the process that writes with it)

import os
import subprocess
import sys
import tempfile
from contextlib import closing

PLACE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "legacy", "golden_legacy")
ITEMS = ["gone", "first", ("second", 2), None, "x" * 5_000]
TEXTS = ["gone", "first", "second, \u00fc", "", "x" * 5_000]
BYTES = [text.encode() for text in TEXTS]


def write_file(path):
    import persistent_queue

    queue = persistent_queue.PersistentQueue(os.path.basename(path), os.path.dirname(path))
    queue.push(ITEMS)
    queue.delete(1)
    queue.file.close()


def write_chunks(path):
    import persistqueue

    queue = persistqueue.Queue(path, chunksize=2)
    for item in ITEMS:
        queue.put(item)
    queue.get()
    queue.task_done()


def write_table(path):
    import persistqueue

    queue = persistqueue.FIFOSQLiteQueue(path)
    for item in ITEMS:
        queue.put(item)
    queue.get()
    if hasattr(queue, "task_done"):  # which commits, where each call does not
        queue.task_done()


def write_acks(path):
    import persistqueue

    queue = persistqueue.SQLiteAckQueue(path)
    for item in ITEMS:
        queue.put(item)
    queue.task_done()
    queue.ack(queue.get())
    queue.get()  # and not acknowledged


def write_litequeue(path):
    import litequeue

    queue = getattr(litequeue, "LiteQueue", None) or litequeue.SQLQueue
    with closing(queue(path)) as db:
        for text in TEXTS:
            db.put(text)
        for is_done in (True, False):
            found = db.pop()
            if is_done:
                names = found if isinstance(found, dict) else vars(type(found))
                name = "message_id" if "message_id" in names else "task_id"
                claim = {"claim_id": found.claim_id} if hasattr(found, "claim_id") else {}
                db.done(found[name] if isinstance(found, dict) else getattr(found, name), **claim)


def write_queuelib(path):
    from queuelib import FifoDiskQueue

    queue = FifoDiskQueue(path, chunksize=2)
    for item in BYTES:
        queue.push(item)
    queue.pop()
    queue.close()


def write_queuelib_table(path):
    from queuelib.queue import FifoSQLiteQueue

    queue = FifoSQLiteQueue(path)
    for item in BYTES:
        queue.push(item)
    queue.pop()
    queue.close()


GOLDEN = {
    **{("python-persistent-queue", f"1.{each}", "file"): write_file for each in ("0.0", "0.1", "1.0", "1.1", "1.2")},
    **{("python-persistent-queue", f"1.{each}", "file"): write_file for each in ("2.0", "2.1", "3.0")},
    **{("persist-queue", each, "files"): write_chunks for each in ("0.1.6", "0.3.6", "0.5.0", "0.8.1")},
    **{("persist-queue", each, "table"): write_table for each in ("0.2.3", "0.3.6", "0.5.0", "0.8.1")},
    **{("persist-queue", each, "acks"): write_acks for each in ("0.5.0", "0.8.1")},
    **{("litequeue", each, "table"): write_litequeue for each in ("0.1", "0.3", "0.5", "0.7", "0.8", "0.14")},
    **{("queuelib", each, "files"): write_queuelib for each in ("1.1.1", "1.4.2", "1.6.2")},
    **{("queuelib", each, "table"): write_queuelib_table for each in ("1.4.2", "1.6.2")},
}


def main():
    os.makedirs(PLACE, exist_ok=True)
    for package, version, kind in GOLDEN:
        path = os.path.join(PLACE, f"{package}-{version}-{kind}")
        if not os.path.exists(path):
            with tempfile.TemporaryDirectory() as place:
                pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", place]
                subprocess.run([*pip, f"{package}=={version}"], check=True)
                environment = {**os.environ, "PYTHONPATH": place}
                write = [sys.executable, __file__, package, version, kind, path]
                subprocess.run(write, env=environment, check=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        GOLDEN[tuple(sys.argv[1:4])](sys.argv[4])
    else:
        main()
