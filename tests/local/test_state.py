"""``queue.state``: a mapping beside the items, whole through transactions, flushes, copies and repairs."""

import json
import os
import pickle
import shutil
import threading

import pytest

from lmdbqueue import ClosedError, CorruptQueueError, PersistentQueue
from lmdbqueue._local import compaction


@pytest.mark.parametrize("checksum", [True, False])
def test_state_survives_all_that_the_items_survive(open_queue, tmp_path, checksum):
    queue = open_queue(checksum=checksum)
    queue.push([1, 2])
    queue.state["n"] = 1
    queue.state["gone"] = 2
    queue.flush(force=True)
    del queue.state["gone"]
    queue.state["m"] = "x" * 9000
    queue.flush(force=True)
    with queue.copy("copy") as copy:
        assert dict(copy.state) == {"n": 1, "m": "x" * 9000}
    queue.check(repair=True)
    queue.close()
    with PersistentQueue("queue", tmp_path, checksum=checksum) as queue:
        assert dict(queue.state) == {"n": 1, "m": "x" * 9000}
        assert queue.check() == []


def test_state_that_is_written_while_a_flush_copies_is_not_lost(open_queue, monkeypatch):
    queue = open_queue()
    queue.push([b"x" * 1000] * 100)
    queue.state.update(before=1, gone=1)
    copy = compaction.Ahead.copy

    def copied(*args):
        result = copy(*args)
        queue.state["before"] = 2
        queue.state["new"] = 3
        del queue.state["gone"]
        return result

    monkeypatch.setattr(compaction.Ahead, "copy", copied)
    queue.flush(force=True)
    assert dict(queue.state) == {"before": 2, "new": 3}
    assert len(queue) == 100


def _damage(path, what):
    """Flip a bit of ``what`` in the only generation at ``path``."""
    (name,) = (name for name in os.listdir(path) if name.endswith(".mdb"))
    with open(os.path.join(path, name), "r+b") as file:
        data = file.read()
        assert data.count(what) >= 1
        at = -1
        while (at := data.find(what, at + 1)) >= 0:
            file.seek(at)
            file.write(bytes([what[0] ^ 1]))


def test_damaged_state_is_never_returned_and_harms_nothing_else(tmp_path):
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push(["first"])
        queue.state.update(bad="here it stands", good=1)
        queue.flush(force=True)
    _damage(tmp_path / "queue", b"here it stands")
    os.unlink(tmp_path / "queue" / "session")  # so that it is proven
    shutil.copytree(tmp_path / "queue", tmp_path / "again")
    with PersistentQueue("queue", tmp_path) as queue:
        (problem,) = queue.check()
        assert "'bad'" in problem
        with pytest.raises(CorruptQueueError, match="bad"):
            queue.state["bad"]
        assert "bad" in queue.state
        assert queue.state["good"] == 1
        queue.state["bad"] = "anew"
        assert queue.check() == []
        assert queue.pop() == "first"
    with PersistentQueue("again", tmp_path) as queue:
        sentences = queue.check(repair=True)
        assert any("quarantine" in sentence for sentence in sentences)
        assert dict(queue.state) == {"good": 1}
        assert queue.check() == []
        assert queue.pop() == "first"
    with open(tmp_path / "again.quarantine", encoding="ascii") as file:
        assert json.loads(file.readline())["state"] == "bad"


def test_repair_keeps_queues_whose_names_sort_otherwise_than_their_records(open_queue):
    queues = {name: open_queue(name=name) for name in ("a", "a!", "a-b", "ab")}
    for name, queue in queues.items():
        queue.push(name)
        queue.state["k"] = name
    number = queues["a"]._engine.environment._generation.number
    path = queues["a"]._engine.environment._generation.path
    from lmdbqueue._lmdb.snapshot import Snapshot  # noqa: PLC0415
    from lmdbqueue._local import salvage  # noqa: PLC0415

    draft = path + ".rebuilt"
    options = queues["a"]._engine.environment.directory.options
    assert salvage.rebuild(path, draft, options, salvage.Quarantine(path)) == []
    snapshot = Snapshot(draft, options)
    try:
        found = snapshot.read(lambda txn, snapshot: dict(txn.cursor(snapshot.meta)))
    finally:
        snapshot.close()
        os.unlink(draft)
        os.unlink(draft + "-lock")
    for name in queues:
        assert {f"{name}/{what}".encode() for what in ("queue", "state/k")} <= found.keys()
    assert number == queues["a"]._engine.environment._generation.number


def test_a_key_that_does_not_fit_beside_a_long_name_is_refused(open_queue):
    queue = open_queue(name="n" * 200)
    queue.state["k" * 300] = 1
    with pytest.raises(ValueError, match="at most"):
        queue.state["k" * 311] = 1
    assert list(queue.state) == ["k" * 300]


def test_the_state_of_a_closed_queue_is_closed_whoever_else_has_the_directory_open(open_queue):
    queue, other = open_queue(), open_queue(name="other")
    state = queue.state
    state["a"] = 1
    queue.close()
    for _ in range(2):
        for use in (dict, len, lambda state: state["a"], lambda state: state.update(a=2), lambda state: state.clear()):
            with pytest.raises(ClosedError):
                use(state)
        assert "queue" in repr(state)
        other.flush(force=True)  # whose new file has no handle of the other queue
    assert open_queue().state["a"] == 1


CHANGES = {
    "pop": lambda state: state.pop("a"),
    "pop what is not there": lambda state: state.pop("c", None),
    "popitem": lambda state: state.popitem(),
    "setdefault": lambda state: state.setdefault("a", 5),
    "setdefault, new": lambda state: state.setdefault("c", 5),
    "update": lambda state: state.update({"a": 3}, b=4),
    "update by pairs": lambda state: state.update((key, 3) for key in "ab"),
    "as_dict": lambda state: state.as_dict(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_dumps_and_loads_run_while_others_may_write(open_queue, change):
    """A function of the user's may be slow, or wait for another thread: it is called amid no transaction."""
    queue, other = open_queue(durability="off"), open_queue(durability="off", name="other")
    queue.state.update(a=1, b=2)
    pushed = []

    def push():
        thread = threading.Thread(target=other.push, args=("x",), daemon=True)
        thread.start()
        thread.join(5)
        pushed.append(not thread.is_alive())

    def dumps(item):
        push()
        return pickle.dumps(item)

    def loads(payload):
        push()
        return pickle.loads(payload)

    queue.dumps, queue.loads = dumps, loads
    CHANGES[change](queue.state)
    assert all(pushed)
    assert bool(pushed) == (change != "pop what is not there")


def test_what_changes_while_it_is_decoded_is_taken_as_it_is_then(open_queue):
    queue = open_queue(durability="off")
    changes = [3, 2]

    def loads(payload):
        value = pickle.loads(payload)
        if changes:
            other.state["a"] = changes.pop()
        return value

    other = open_queue(durability="off")
    other.state["a"] = 1
    queue.loads = loads
    assert queue.state.pop("a") == 3
    other.state["a"] = 1
    changes = [None]
    assert queue.state.popitem() == ("a", None)
    assert dict(other.state) == {}
    with pytest.raises(KeyError):
        queue.state.popitem()
    with pytest.raises(KeyError, match="a"):
        queue.state.pop("a")
    with pytest.raises(TypeError):
        queue.state.pop("a", 1, 2)
