"""The proof of a file finds nothing in what LMDB writes, whatever was called, and finds what is wrong.

LMDBQUEUE_FUZZ says for how many seconds the long form (``-m long``) calls verbs.
"""

import errno
import os
import random
import resource
import shutil
import signal
import time
import tracemalloc
from collections import Counter
from contextlib import ExitStack
from itertools import count
from struct import pack_into, unpack_from

import lmdb
import pytest
from any_verbs import NAMES, AnyVerbs
from lmdb import verify
from processes import forked, generations, in_a_small_process, status_of

from lmdbqueue import CorruptQueueError, PersistentQueue, QueueError
from lmdbqueue._lmdb import meta_page, structure
from lmdbqueue._lmdb.snapshot import Snapshot
from lmdbqueue._model import away_proof, fifo

SECONDS = 8.0  # of verbs, a seed
LONG_SECONDS = float(os.environ.get("LMDBQUEUE_FUZZ", "3600"))


def _chance(seed):
    return random.Random(seed)  # noqa: S311


def _open(place, name="one", **options):
    return PersistentQueue("queue", str(place), dumps=bytes, loads=bytes, name=name, **options)


def _file(place):
    return os.path.join(place, "queue", generations(os.path.join(place, "queue"))[-1])


def _mount_elsewhere(place, to):
    """Copy the directory as it stands, which is how another mount of it looks to whoever opens it first."""
    shutil.copytree(os.path.join(place, "queue"), os.path.join(to, "queue"))


# --- what the library writes is accepted


def _prove_whatever_is_called(place, seed, seconds):
    verbs = AnyVerbs(place, seed)
    end = time.monotonic() + seconds
    done = []
    while time.monotonic() < end:
        done.append(verbs.step())
        assert verbs.queues[0].check() == [], (seed, len(done), done[-1])
        if len(done) % 50 == 0:
            waiting = [
                Counter(queue) for queue in verbs.queues
            ]  # to which what is delayed or leased may come at any time
            _mount_elsewhere(place, f"{place}/{len(done)}")
            with ExitStack() as stack:
                others = [stack.enter_context(_open(f"{place}/{len(done)}", name)) for name in NAMES]
                assert others[0].check() == []
                assert all(had <= Counter(other) for had, other in zip(waiting, others, strict=True)), (seed, len(done))
            shutil.rmtree(f"{place}/{len(done)}")
    verbs.close()
    return len(done)


@pytest.mark.parametrize("seed", range(4))
def test_the_proof_finds_nothing_in_what_any_verbs_have_written(seed, memory, record_property):
    record_property("verbs, each followed by a proof", _prove_whatever_is_called(memory, seed, SECONDS))


@pytest.mark.long
def test_the_proof_finds_nothing_in_what_any_verbs_have_written_for_an_hour(memory, record_property):
    end = time.monotonic() + LONG_SECONDS
    done = seed = 0
    while time.monotonic() < end:
        seed += 1
        place = f"{memory}/{seed}"
        os.mkdir(place)
        done += _prove_whatever_is_called(place, 1_000 + seed, min(60.0, LONG_SECONDS))
        shutil.rmtree(place)
    record_property("verbs, each followed by a proof", done)


@pytest.mark.parametrize("expired", ["drop", "dead"])
def test_a_push_with_which_others_expire_and_leave_is_proven_after_a_power_cut(expired, memory):
    chance, leases = _chance(7), []
    with _open(memory, expired=expired) as queue:
        queue.retain(8, bytes=2_000)
        for number in range(50):
            some = [chance.randbytes(chance.choice((0, 20, 300))) for _ in range(chance.choice((1, 1, 3, 12)))]
            expires = chance.choice((None, 1e-3, 5e-3, 60.0))
            how = {"expires": expires, "headers": chance.choice((None, {"a": "b"}))}
            if chance.random() < 0.3:
                how.update(unique=[chance.choice("klm") for _ in some], replace=chance.random() < 0.5)
            queue.push(some, **how)
            if number % 3 == 0 and (lease := queue.lease(2)):
                leases.append(lease)
            if number % 5 == 0 and leases:
                leases.pop(0).nack()
            _mount_elsewhere(memory, f"{memory}/{number}")
            with _open(f"{memory}/{number}") as other:
                records = [each._engine.environment.view(each._engine.ref, fifo.numbers) for each in (queue, other)]
                assert records[0] == records[1], number
                assert other.check() == []
            shutil.rmtree(f"{memory}/{number}")
        assert queue.stats().expired > 5
        assert queue.stats().dropped > 20


@pytest.mark.parametrize("more", [0, 1])
def test_a_state_that_shrinks_in_a_block_is_no_damage_after_a_kill_and_another_mount(more, tmp_path):
    def work():
        queue = _open(tmp_path)
        with queue.transaction():
            queue.push(b"ack")
            queue.state["p"] = b"x" * 20000
            queue.state["p"] = b"x" * 9000
        for _ in range(more):
            queue.push(b"one more")
        os.kill(os.getpid(), signal.SIGKILL)

    assert status_of(forked(work)) == -signal.SIGKILL
    assert verify.verify(_file(tmp_path)) != []  # LMDB's own verifier takes it for damaged
    _mount_elsewhere(tmp_path, tmp_path / "elsewhere")
    with _open(tmp_path / "elsewhere") as queue:
        assert list(queue) == [b"ack"] + [b"one more"] * more
        assert queue.state["p"] == b"x" * 9000
        assert queue.check() == []


# --- what is wrong is found


SIZES = (10, 500, 900) * 5 + (9_000,)  # of items; the last takes a run of three pages


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file with all kinds of pages: trees of depth 3, overflow runs, a list of free pages on pages of its own."""
    tmp_path = tmp_path_factory.mktemp("made")
    chance = _chance(0)
    with _open(tmp_path, durability="off") as queue, _open(tmp_path, "two", durability="off") as other:
        for _ in range(250):
            queue.push([chance.randbytes(chance.choice(SIZES)) for _ in range(50)])
            other.push([b"", b"x"])
            queue.delete(chance.randrange(50))
        queue.delete(4_000)
        queue.lease(300)
        assert queue.check() == []
    return _file(tmp_path)


@pytest.fixture
def file(made, tmp_path):
    """A copy of it, for one test."""
    return shutil.copy(made, tmp_path)


class Pages:
    """A file's pages by their kind, to be changed."""

    def __init__(self, path):
        self.path = path
        with open(path, "rb") as file:
            self.data = bytearray(file.read())
        self.newest, _ = meta_page.read(path)
        self.of_kind = {1: [], 2: [], 4: []}
        seen = set()
        todo = [self.newest.main.root]
        while todo:
            number = todo.pop()
            assert number not in seen
            seen.add(number)
            kind = self.kind(number)
            self.of_kind[kind].append(number)
            for at in self.nodes(number):
                size, flags, of_key = unpack_from("=IHH", self.data, at)
                if kind == 1:
                    todo.append(int.from_bytes(self.data[at : at + 6], "little"))
                elif flags & 2 and size == 48:
                    (root,) = unpack_from("=Q", self.data, at + 8 + of_key + 40)
                    todo += [root] if root < 1 << 60 else []
                elif flags & 1:
                    self.of_kind[4].append(unpack_from("=Q", self.data, at + 8 + of_key)[0])

    def kind(self, number):
        return unpack_from("=H", self.data, number * 4096 + 10)[0]

    def nodes(self, number):
        lower = unpack_from("=H", self.data, number * 4096 + 12)[0]
        return [number * 4096 + at for at in unpack_from(f"={(lower - 16) // 2}H", self.data, number * 4096 + 16)]

    def problems(self):
        with open(self.path, "wb") as file:
            file.write(self.data)
        return structure.problems_of(self.path)

    def slot(self):
        return self.newest.offset


def _another_number(pages, chance):
    number = chance.choice(pages.of_kind[chance.choice((1, 2, 4))])
    pack_into("=Q", pages.data, number * 4096, number + 1)


def _other_flags(pages, chance):
    number = chance.choice(pages.of_kind[chance.choice((1, 2, 4))])
    pack_into("=H", pages.data, number * 4096 + 10, pages.kind(number) ^ chance.choice((3, 4, 16, 32, 64)))


def _swapped_keys(pages, chance):
    number = chance.choice([each for each in pages.of_kind[chance.choice((1, 2))] if len(pages.nodes(each)) > 3])
    at = number * 4096 + 18 + 2 * chance.randrange(len(pages.nodes(number)) - 2)
    pages.data[at : at + 4] = pages.data[at + 2 : at + 4] + pages.data[at : at + 2]


def _a_child_twice(pages, chance):
    first, second = chance.sample(pages.nodes(chance.choice(pages.of_kind[1])), 2)
    pages.data[first : first + 6] = pages.data[second : second + 6]


def _a_child_that_is_free(pages, chance):
    at = chance.choice(pages.nodes(chance.choice(pages.of_kind[1])))
    child = int.from_bytes(pages.data[at : at + 6], "little")
    pages.data[at : at + 6] = (chance.choice((0, 1, child + 1, pages.newest.last_page + 1, 1 << 47))).to_bytes(
        6, "little"
    )


def _a_run_that_is_short(pages, chance):
    number = chance.choice(pages.of_kind[4])
    pack_into("=I", pages.data, number * 4096 + 12, chance.choice((0, 1, 2)))


def _a_run_that_is_long(pages, chance):
    number = chance.choice(pages.of_kind[4])
    pack_into("=I", pages.data, number * 4096 + 12, chance.choice((4, 5, 1 << 20, (1 << 32) - 1)))


def _another_count(pages, chance):
    at = pages.slot() + chance.choice((40, 88)) + chance.choice((6, 8, 16, 24, 32))
    pages.data[at] = (pages.data[at] + chance.choice((1, -1))) % 256


def _another_last_page(pages, chance):
    pack_into(
        "=Q", pages.data, pages.slot() + 136, chance.choice((0, pages.newest.last_page + 1, 1 << 40, (1 << 64) - 1))
    )


def _a_leaf_of_before(pages, chance):
    """Let a page have what a page of the same tree had in its place."""
    first, second = chance.sample(pages.of_kind[2], 2)
    pages.data[first * 4096 + 16 : first * 4096 + 4096] = pages.data[second * 4096 + 16 : second * 4096 + 4096]
    pages.data[first * 4096 + 12 : first * 4096 + 16] = pages.data[second * 4096 + 12 : second * 4096 + 16]


def _a_longer_node(pages, chance):
    at = chance.choice([at for number in pages.of_kind[2] for at in pages.nodes(number) if not pages.data[at + 4] & 1])
    pack_into("=I", pages.data, at, unpack_from("=I", pages.data, at)[0] + chance.choice((2, 4_000, 1 << 31)))


def _the_slot_of_the_other(pages, _chance):
    number = pages.slot() + 144
    pack_into("=Q", pages.data, number, pages.newest.transaction + 1)


KINDS = ("_a_", "_another_", "_other_", "_swapped_", "_the_")
WRONG = [each for name, each in list(globals().items()) if name.startswith(KINDS)]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda each: each.__name__)
def test_the_proof_finds_what_is_wrong(wrong, file):
    chance = _chance(wrong.__name__)
    with open(file, "rb") as opened:
        whole = opened.read()
    assert structure.problems_of(file) == []
    for _ in range(20):
        pages = Pages(file)
        before = bytes(pages.data)
        wrong(pages, chance)
        assert pages.data == before or pages.problems() != []
        with open(file, "wb") as opened:
            opened.write(whole)


def test_the_proof_finds_what_the_verifier_of_lmdb_finds(file):
    """Any byte of the structure, changed by chance; of the values only LMDB's own are looked at."""
    chance = _chance(0)
    with open(file, "rb") as opened:
        whole = opened.read()
    used = Pages(file).of_kind
    found = 0
    for _ in range(300):
        data = bytearray(whole)
        number = chance.choice((*used[1], *chance.choices(used[2], k=5), *chance.choices(used[4], k=2)))
        at = number * 4096 + chance.choice((chance.randrange(16), chance.randrange(16, 60), chance.randrange(4096)))
        data[at] ^= 1 << chance.randrange(8)
        with open(file, "wb") as opened:
            opened.write(data)
        theirs = verify.verify(file)
        if any("mp_pages" not in each for each in theirs):
            found += 1
            assert structure.problems_of(file), (number, at % 4096, theirs)
    assert found > 100


@pytest.fixture
def held_back(tmp_path):
    """A queue with a record of each kind in AWAY."""
    queue = _open(tmp_path, max_attempts=1)
    queue.push([b"%d" % number for number in range(9)])
    queue.push([b"later", b"later"], delay=100.0)
    queue.push(b"with a key", unique="key")
    queue.reader("reader").close()
    with _open(tmp_path, "leased", max_attempts=1) as leased:
        leased.push([b"%d" % number for number in range(9)])
        leased.push(b"with a key", unique="key")
        leased.lease(2).nack()
        lease = leased.lease(3, ttl=60.0)
        with _open(tmp_path, "gaps") as gaps:
            gaps.push([b"%d" % number for number in range(40)])
            first = gaps.lease(40)
            first.nack(first.seqs[::2])
            second = gaps.lease(20)
            yield [queue, leased, gaps]
        del lease, second
    queue.close()


@pytest.mark.parametrize(
    "kind", ["dead", "delayed", "expiry", "held", "lease", "leased", "note", "owner", "passed", "unique"]
)
def test_a_record_of_what_is_held_back_that_is_missing_is_found(kind, held_back):
    found = False
    for queue in held_back:
        environment = queue._engine.environment
        assert queue.check() == []
        with environment.exclusive() as (generation, txn):
            prefix = b"%s/%s/" % (queue.name.encode(), kind.encode())
            with txn.cursor(generation.away) as cursor:
                if not cursor.set_range(prefix) or not cursor.key().startswith(prefix):
                    continue
                cursor.delete()
            found = True
            tables = next(each for each in generation.open_to(txn) if each.name == queue.name)
            assert away_proof.Proof(txn, tables).sentences() != []
    assert found


def test_the_proof_of_much_that_is_held_back_takes_little_memory(tmp_path):
    with _open(tmp_path, durability="off") as queue:
        for _ in range(20):
            queue.push([b"x" * 2_000] * 1_000, delay=1_000.0)
        tracemalloc.start()
        try:
            assert queue.check() == []
            assert tracemalloc.get_traced_memory()[1] < 4_000_000  # bytes, of 40 million
        finally:
            tracemalloc.stop()


# --- what the system refuses is no finding


def _left_behind(place):
    """Leave a queue that its first opener has to prove: k and k-1 are whole."""

    def work():
        queue = _open(place)
        queue.push([b"x" * 100] * 5_000)
        queue.push(b"acknowledged")
        os.kill(os.getpid(), signal.SIGKILL)

    assert status_of(forked(work)) == -signal.SIGKILL
    _mount_elsewhere(place, os.path.join(place, "elsewhere"))
    return os.path.join(place, "elsewhere")


def _is_whole(place):
    with _open(place) as queue:
        return queue.count() == 5_001 and list(queue)[-1] == b"acknowledged" and queue.check() == []


def _system(number):
    return OSError(number, os.strerror(number))


SYSTEM = [
    (os, "pread", MemoryError()),
    (os, "pread", _system(errno.EIO)),
    (os, "open", _system(errno.EMFILE)),
    (lmdb, "open", lmdb.MemoryError("Cannot allocate memory")),
    (lmdb, "open", lmdb.Error("Too many open files")),
    (Snapshot, "read", MemoryError()),
    (structure, "problems_of", _system(errno.EIO)),
]


def _ends(place, limits, limit):
    """Open copies of the queue, each under a limit in a child; return how these end: 7 with an error of the system."""
    found = set()
    for each in limits:
        copy = f"{place}-{each}"
        shutil.copytree(place, copy)

        def open_it(copy=copy, each=each):
            limit(each)
            try:
                _open(copy).close()
            except (QueueError, MemoryError, OSError) as error:
                os._exit(8 if isinstance(error, CorruptQueueError) else 7)

        found.add(status_of(forked(open_it)))
        assert _is_whole(copy), each
        shutil.rmtree(copy)
    return found


def _ends_with_errors(place, which):
    where, name, error = SYSTEM[which]
    function = getattr(where, name)

    def fail_at(moment):
        calls = count()

        def failing(*args, **options):
            if next(calls) == moment:
                raise error
            return function(*args, **options)

        setattr(where, name, failing)

    return _ends(_left_behind(place), (*range(12), 20, 50, 120, 200, 400), fail_at)


@pytest.mark.parametrize("which", range(len(SYSTEM)), ids=lambda which: repr(SYSTEM[which]))
def test_an_error_of_the_system_ends_the_opening_and_changes_nothing(which, tmp_path):
    """At some of the moments at which it may come; k and k-1 are whole, and only one of them may meet it."""
    ends = in_a_small_process(_ends_with_errors, os.fspath(tmp_path), which)
    assert ends in ({0, 7}, {0} if SYSTEM[which][0] is not os else {0, 7})  # the proof may do without LMDB


def _ends_without_descriptors(place):

    def limit(descriptors):
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    most = max(map(int, os.listdir("/proc/self/fd"))) + 16
    return _ends(_left_behind(place), range(most, 3, -1), limit)


def test_an_opening_without_enough_descriptors_changes_nothing(tmp_path):
    assert in_a_small_process(_ends_without_descriptors, os.fspath(tmp_path)) == {0, 7}


def _ends_without_memory(place):

    def limit(spare):
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))

    return _ends(_left_behind(place), (0, *(1 << bits for bits in range(16, 32)), 3 << 20), limit)


def test_an_opening_without_enough_memory_changes_nothing(tmp_path):
    assert in_a_small_process(_ends_without_memory, os.fspath(tmp_path)) == {0, 7}
