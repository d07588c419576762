"""Whatever is done to the files: a right answer or an error of ours, and a repair that leaves a whole queue.

LMDBQUEUE_DAMAGES says how many damages the long form tries.
"""

import contextlib
import os
import random
import shutil
import signal
import struct
from collections.abc import Callable

import lmdb
import mutants
import pytest
from opener import pretend_reboot
from processes import eventually, forked, in_a_small_process, status_of, tree

import lmdbqueue
from lmdbqueue import CorruptItemError, CorruptQueueError, GoneError, PersistentQueue, QueueError, StorageError
from lmdbqueue._host import session

DAMAGES = int(os.environ.get("LMDBQUEUE_DAMAGES", "200000"))
TOLD = "damaged files"
ITEMS = [random.Random(number).randbytes(20 if number % 9 else 6_000) for number in range(300)]  # noqa: S311
GONE = 40
DATA = "00000001.mdb"


@pytest.fixture
def root(memory) -> str:
    """Give the directory of a queue, as a process that was killed has left it."""
    with _open(memory) as queue:
        for start in range(0, len(ITEMS), 10):
            queue.push(ITEMS[start : start + 10])
        queue.delete(GONE)
        shutil.copytree(os.path.join(memory, "queue"), os.path.join(memory, "root"))
    return os.path.join(memory, "root")


def _open(place: str, name: str = "queue") -> PersistentQueue[bytes]:
    return PersistentQueue(name, place, dumps=bytes, loads=bytes)


def _use(place: str) -> None:
    """Demand right answers, or errors of ours, and that a consumer comes to the end of the queue."""
    with contextlib.suppress(CorruptQueueError, lmdbqueue.FormatError, lmdbqueue.VersionError), _open(place) as queue:
        with contextlib.suppress(CorruptItemError):
            _demand_right(queue.peek(1000))
        for _ in range(2 * len(ITEMS)):
            try:
                found = queue.pop()
            except CorruptItemError:
                assert queue.delete() == 1  # a consumer can always go on
                continue
            if found is None:
                break
            _demand_right([found])
        queue.push(b"new")
        assert queue.pop(1000)[-1:] == [b"new"]


def _demand_right(items: list[bytes]) -> None:
    wanted = iter(ITEMS)
    assert all(item in wanted for item in items), "an item was altered, or the order"


def _repair(place: str) -> None:
    """Demand that a repair leaves a whole queue, if there is anything to repair."""
    path = os.path.join(place, "queue")
    try:
        lmdbqueue.check(path, repair=True)
    except QueueError:
        return  # it says why
    if lmdbqueue.check(path) == []:
        with _open(place) as queue:
            _demand_right(list(queue))
    else:
        with contextlib.suppress(QueueError), _open(place):
            raise AssertionError("repaired, and it can be opened, and it is not whole")


def _flip(path: str, chance: random.Random) -> str:
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        flips = chance.choice((1, 1, 1, 3, 40))
        for _ in range(flips):
            at = chance.randrange(min(size, chance.choice((size, size, 8192, 400))))
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << chance.randrange(8)]))
    return f"{flips} flips in {os.path.basename(path)}, the last at {at}"


def _overwrite(path: str, chance: random.Random) -> str:
    size = os.path.getsize(path)
    length = chance.choice((1, 8, 100, 4096, 20_000))
    at = chance.choice((0, 4096, chance.randrange(size), chance.randrange(size) // 4096 * 4096))
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(chance.choice((bytes(length), chance.randbytes(length))))
    return f"{length} bytes written to {os.path.basename(path)} at {at}"


def _truncate(path: str, chance: random.Random) -> str:
    size = os.path.getsize(path)
    length = chance.choice((0, 1, 4096, 8192, chance.randrange(size), chance.randrange(size) // 4096 * 4096))
    os.truncate(path, length)
    return f"{os.path.basename(path)} cut to {length} bytes"


def _remove(path: str, _chance: random.Random) -> str:
    os.unlink(path)
    return f"{os.path.basename(path)} removed"


def damage(root: str, seed: int) -> str:
    """Do one damage to the files of the queue; say which."""
    chance = random.Random(seed)  # noqa: S311
    how: Callable[[str, random.Random], str] = chance.choice((_flip, _flip, _flip, _overwrite, _truncate, _remove))
    names = os.listdir(root)
    return how(os.path.join(root, DATA if chance.random() < 0.8 else chance.choice(sorted(names))), chance)


def _damage_again_and_again(root: str, seeds: range, prepare: Callable[[], None]) -> None:
    """Try what each damage does, in children that call ``prepare`` first, on all processors.

    Where nothing was proven LMDB may meet a page that it gives up at, which ends the process (``docs/operations.md``).
    A repair never does, since it looks at the structure before LMDB does.
    """
    parts = os.cpu_count() or 1
    may_give_up = prepare.__name__ == _pretend_that_nothing_happened.__name__  # which is there twice: it was pickled

    def one(verb: Callable[[str], None], place: str) -> None:
        prepare()
        verb(place)

    def share(part: int) -> None:
        given_up = 0
        for seed in seeds[part::parts]:
            place = f"{root} {seed}"
            again = os.path.join(place, "again")
            os.mkdir(place)
            shutil.copytree(root, os.path.join(place, "queue"))
            what = damage(os.path.join(place, "queue"), seed)
            shutil.copytree(os.path.join(place, "queue"), os.path.join(again, "queue"))
            statuses = status_of(forked(one, _use, place)), status_of(forked(one, _repair, again))
            if may_give_up and statuses[0] == -signal.SIGABRT:
                given_up += 1
                statuses = 0, statuses[1]
            assert statuses == (0, 0), f"damage {seed}, {what}: use and repair ended with {statuses}"
            shutil.rmtree(place)
        assert given_up <= 1 + len(seeds[part::parts]) // 100, "LMDB gave up too often to be told anything"

    pids = [forked(share, part) for part in range(parts)]
    assert [status_of(pid, 36_000) for pid in pids] == [0] * parts


def _pretend_that_nothing_happened() -> None:
    """Let nobody prove what a killed process left, so that LMDB meets the damage."""
    session.Session.is_standing = lambda _self: True  # type: ignore[method-assign]


PREPARED = {"after a reboot": pretend_reboot, "in the same session": _pretend_that_nothing_happened}


@pytest.mark.parametrize("when", PREPARED)
def test_no_damage_leads_to_a_wrong_answer_or_a_crash(root, needs, when, record_property):
    needs("root")
    in_a_small_process(_damage_again_and_again, root, range(60), PREPARED[when])
    record_property(TOLD, 60)


@pytest.mark.parametrize("name", mutants.READING)
def test_damage_finds_a_fault_in_reading(root, name):
    with pytest.raises(AssertionError):
        in_a_small_process(_damage_again_and_again, root, range(60), mutants.READING[name])


@pytest.mark.long
@pytest.mark.parametrize("when", PREPARED)
def test_no_damage_of_very_many_leads_to_a_wrong_answer_or_a_crash(root, needs, when, record_property):
    needs("root")
    in_a_small_process(_damage_again_and_again, root, range(1000, 1000 + DAMAGES // 2), PREPARED[when])
    record_property(TOLD, DAMAGES // 2)


# --- the files go while the queue is open


def _push_until_it_is_told(queue: PersistentQueue[bytes]) -> None:
    with pytest.raises(GoneError, match="removed or replaced while the queue was open"):
        queue.push(b"into nowhere")
    with pytest.raises(GoneError):
        queue.pop()
    with pytest.raises(QueueError):
        queue.flush(force=True)


def _wait_until_it_is_old(queue: PersistentQueue[bytes]) -> None:
    """Write nothing of note until the last change of the directory is so old that no other has its time."""

    environment = queue._engine.environment

    def is_old() -> bool:
        environment.update(queue._engine.ref, lambda *_: None)
        return bool(environment._generation.presence.since)

    eventually(is_old)


@pytest.fixture(params=["new", "old"])
def push(request):
    """Push to a queue; to an old one, whose directory was not changed for long."""

    def push_(queue: PersistentQueue[bytes], items: list[bytes]) -> None:
        queue.push(items[0])  # which makes the bell
        if request.param == "old":
            _wait_until_it_is_old(queue)
        queue.push(items[1:])

    return push_


def test_a_queue_whose_directory_is_removed_says_so(tmp_path, push):
    with _open(str(tmp_path)) as queue:
        push(queue, [b"a", b"b"])
        shutil.rmtree(tmp_path / "queue")
        _push_until_it_is_told(queue)
    with _open(str(tmp_path)) as queue:
        assert len(queue) == 0


def test_a_queue_whose_file_is_removed_says_so(tmp_path, push):
    with _open(str(tmp_path)) as queue:
        push(queue, [b"a", b"b"])
        os.unlink(tmp_path / "queue" / "00000001.mdb")
        _push_until_it_is_told(queue)


def test_an_error_of_a_file_that_has_no_name_any_more_is_one_of_ours(tmp_path):
    """A swap takes it away, and others read on."""
    with _open(str(tmp_path)) as queue:
        os.unlink(tmp_path / "queue" / DATA)
        error = lmdb.ReadersFullError("mdb_txn_begin: Environment maxreaders limit reached")
        assert isinstance(queue._engine.environment._generation.explain(error, "reading"), StorageError)


@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_record_that_is_too_short_is_damage_also_when_no_handle_is_open_for_good(tmp_path, is_prepared):
    with _open(str(tmp_path)) as queue:
        queue.flush(force=True)
        if is_prepared:
            queue.push(b"a")
        environment = queue._engine.environment
        assert environment._generation.is_prepared == is_prepared
        with pytest.raises(CorruptQueueError, match="cannot be read"):
            environment.view(queue._engine.ref, lambda *_: struct.unpack("Q", b""))


def test_a_file_that_is_there_is_not_asked_for_its_times(tmp_path, monkeypatch):
    with _open(str(tmp_path)) as queue:
        queue.push([b"a", b"b"])  # which makes the bell
        _wait_until_it_is_old(queue)
        asked = []
        for name in ("stat", "fstat"):
            found = getattr(os, name)
            monkeypatch.setattr(os, name, lambda path, found=found: asked.append(path) or found(path))
        queue.push(b"c")
        assert queue.pop(3) == [b"a", b"b", b"c"]
        assert {*asked} == {str(tmp_path / "queue")}


def test_a_queue_that_another_takes_the_place_of_says_so(tmp_path, push):
    with _open(str(tmp_path)) as old:
        push(old, [b"a", b"b"])
        shutil.rmtree(tmp_path / "queue")
        with _open(str(tmp_path)) as new:
            new.push(b"new")
            _push_until_it_is_told(old)
            assert list(new) == [b"new"]
            assert new.check() == []


def test_a_queue_that_is_moved_away_does_nothing_to_the_one_that_came_there(tmp_path):
    with _open(str(tmp_path)) as old:
        old.push([b"a", b"b"])
        os.rename(tmp_path / "queue", tmp_path / "elsewhere")
        with _open(str(tmp_path)) as new:
            new.push(b"new")
            before = tree(str(tmp_path / "queue"))
            with pytest.raises(GoneError):
                old.push(b"c")
            with pytest.raises(GoneError):
                old.flush(force=True)
            assert tree(str(tmp_path / "queue")) == before
            assert list(new) == [b"new"]
            assert list(old) == [b"a", b"b"]


def test_a_queue_that_is_moved_away_is_whole_where_it_is(tmp_path):
    with _open(str(tmp_path)) as queue:
        queue.push([b"a", b"b"])
        os.rename(tmp_path / "queue", tmp_path / "elsewhere")
        with pytest.raises(GoneError):
            queue.push(b"c")
    with _open(str(tmp_path), "elsewhere") as queue:
        assert list(queue) == [b"a", b"b"]
        assert queue.check() == []
