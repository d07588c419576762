"""Verbs and values at random, on several queues of one directory; the file is proven after every step.

The proof is not told what to expect: it is that of ``check()``, and, from time to time, that of a copy of the
directory, which is proven when it is opened. Items are drawn so that their sizes go through all that LMDB does
with a value.
"""

import os
import random
import shutil
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import content
import pytest
from clocks import Clock

from lmdbqueue import ClosedError, DiskFullError, Full, GoneError, LeaseExpiredError, OptionError, PersistentQueue
from lmdbqueue._base.values import Push
from lmdbqueue._lmdb.generation import Generation
from lmdbqueue._local.queue import local_engine_of

SECONDS = float(os.environ.get("LMDBQUEUE_FUZZ_SECONDS", "20"))
SIZES = [0, 1, 10, 40, 40, 40, 200, 900, 2000, 2040, 4000, 8200, 40_000]
NAMES = ["inbox", "outbox", "log"]
REASON = "given back"


class Fuzzer:
    """One run."""

    def __init__(self, place: str, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311
        self.place = place
        self.clock = Clock()
        self.queues: dict[str, PersistentQueue[bytes]] = {}
        self.leases: list[Any] = []
        self.taken: list[tuple[str, Any]] = []  # by names of queues
        self.told: Counter[str] = Counter()
        self.options = {
            "checksum": self.random.random() < 0.85,
            "durability": self.random.choice(["off", "off", "full"]),
        }
        for name in NAMES:
            self.open(name)

    def open(self, name: str) -> PersistentQueue[bytes]:
        options = {"maxsize": self.random.choice([0, 0, 0, 50]), "max_attempts": self.random.choice([None, 2])}
        queue: PersistentQueue[bytes] = PersistentQueue(
            "queue", self.place, bytes, bytes, name=name, **options, **self.options
        )
        self.queues[name] = self.clock.given_to(queue)
        return queue

    def close(self) -> None:
        for queue in self.queues.values():
            queue.close()
        self.leases.clear()

    def item(self) -> bytes:
        return self.random.randbytes(self.random.choice(SIZES))

    def items(self) -> list[bytes]:
        return [self.item() for _ in range(self.random.choice([1, 1, 2, 5, 30, 150]))]

    def any(self) -> PersistentQueue[bytes]:
        return self.queues[self.random.choice(NAMES)]

    def some(self, n: int) -> int:
        return self.random.choice([1, 1, 1, 2, 5, n])

    # --- steps; each is a verb with values

    def push(self) -> None:
        self.any().push(self.item())

    def push_many(self) -> None:
        self.any().push(self.items())

    def push_apart(self) -> None:
        items = self.items()[:20]
        keys = [self.random.choice([b"", b"", b"k" * 16, self.random.randbytes(16)]) for _ in items]
        how = Push(
            delay=self.random.choice([0.0, 0.0, 1.0, 60.0]),
            keys=self.random.choice([(), keys]),
            replace=self.random.random() < 0.3,
            expires=self.random.choice([None, None, 0.5, 30.0]),
            headers=self.random.choice([None, {"traceparent": "00-1", "é": "x" * 300}]),
            priority=self.random.choice([0, 0, 0, -3, 7]),
        )
        local_engine_of(self.any()).append_apart(items, how)

    def pop(self) -> None:
        self.any().pop(self.some(40))

    def take(self) -> None:
        name = self.random.choice(NAMES)
        entries, _ = self.queues[name]._head.take(self.some(9), 0)
        if entries:
            self.taken.append((name, entries))

    def put_back(self) -> None:
        if self.taken:
            name, entries = self.taken.pop(self.random.randrange(len(self.taken)))
            self.queues[name]._engine.put_back(entries)

    def peek(self) -> None:
        queue = self.any()
        queue.peek(self.some(40))
        assert len(queue) == queue.stats().waiting

    def delete(self) -> None:
        self.any().delete(self.some(100))

    def lease(self) -> None:
        lease = self.any().lease(self.some(30), ttl=self.random.choice([None, None, 5.0]))
        if lease:
            self.leases.append(lease)

    def settle(self) -> None:
        if self.leases:
            lease = self.random.choice(self.leases)
            seqs = self.random.choice([None, self.random.sample(lease.seqs, self.random.randint(1, len(lease.seqs)))])
            if self.random.random() < 0.5:
                lease.ack(seqs)
            else:
                lease.nack(seqs, delay=self.random.choice([0.0, 0.0, 3.0]), reason=REASON)
            if seqs is None:
                self.leases.remove(lease)

    def dead(self) -> None:
        dead = self.any().dead
        self.random.choice([dead.requeue, dead.requeue, dead.delete])()

    def readers(self) -> None:
        queue = self.queues["log"]
        reader = queue.reader(self.random.choice("ab"), start=self.random.choice(["oldest", "newest"]))
        self.random.choice(
            [reader.pop, lambda: reader.pop(7), lambda: reader.delete(3), lambda: reader.seek("oldest")]
        )()
        if self.random.random() < 0.1:
            queue.drop_reader(reader.name)

    def retain(self) -> None:
        self.any().retain(
            *self.random.choice([(), (20,)]), **self.random.choice([{}, {"bytes": 50_000}, {"seconds": 40}])
        )

    def move(self) -> None:
        self.queues["inbox"].move(self.some(10), to=self.queues["outbox"])

    def state(self) -> None:
        state = self.any().state
        state[self.random.choice("xyz")] = self.item()
        if self.random.random() < 0.2:
            state.pop(self.random.choice("xyz"), None)

    def block(self) -> None:
        steps = [self.push, self.push_many, self.pop, self.delete, self.state, self.state, self.lease, self.settle]
        with suppress(ZeroDivisionError), self.queues["inbox"].transaction():
            for _ in range(self.random.randint(1, 6)):
                with suppress(Full):
                    self.random.choice([*steps, self.move, self.push_apart])()
            if self.random.random() < 0.2:
                raise ZeroDivisionError

    def clear(self) -> None:
        if self.random.random() < 0.3:
            self.any().clear(all=self.random.random() < 0.5)

    def wait(self) -> None:
        self.clock.go_on(self.random.choice([0.1, 1.0, 10.0, 50.0]))

    def flush(self) -> None:
        if self.random.random() < 0.3:
            self.any().flush(force=True)

    def drop(self) -> None:
        if self.random.random() < 0.2:
            name = self.random.choice(NAMES)
            other = self.queues[self.random.choice([each for each in NAMES if each != name])]
            other.drop_queue(name)
            old = self.queues[name]
            with pytest.raises(GoneError):
                old.push(b"")
            self.open(name)
            with pytest.raises(GoneError):
                old.push(b"")
            old.close()
            self.taken = [each for each in self.taken if each[0] != name]

    def reopen(self) -> None:
        if self.random.random() < 0.3:
            self.close()
            for name in NAMES:
                self.open(name)

    def copy(self) -> None:
        """Copy the directory as a program would that knows nothing of it; its opening proves it."""
        if self.random.random() < 0.3:
            before = {name: list(queue) for name, queue in self.queues.items()}
            self.close()
            shutil.copytree(os.path.join(self.place, "queue"), os.path.join(self.place, "copied"))
            for name in NAMES:
                with PersistentQueue("copied", self.place, bytes, bytes, name=name, **self.options) as copied:
                    self.clock.given_to(copied)
                    assert list(copied)[: len(before[name])] is not None
            shutil.rmtree(os.path.join(self.place, "copied"))
            for name in NAMES:
                self.open(name)

    def step(self) -> None:
        verb = self.random.choice(
            [
                *(self.push, self.push_many, self.push_apart, self.push_apart, self.pop, self.peek, self.delete),
                *(self.take, self.put_back),
                *(self.lease, self.lease, self.settle, self.settle, self.settle, self.dead, self.readers, self.retain),
                *(self.move, self.state, self.block, self.block, self.clear, self.wait, self.flush, self.drop),
                *(self.reopen, self.copy),
            ]
        )
        self.told[verb.__name__] += 1
        with suppress(Full, LeaseExpiredError, OptionError, DiskFullError, ClosedError):
            verb()
        found = self.queues["inbox"].check()
        assert found == [], (verb.__name__, found)


@pytest.fixture
def proven_contents(monkeypatch, weighed_without_syncs):
    """Let each commit prove that it notes the weight of what it adds."""
    del weighed_without_syncs
    monkeypatch.setattr(Generation, "_commit", content.proving)


@pytest.mark.usefixtures("proven_contents")
def test_whatever_is_called_with_whatever_values_the_file_is_whole(tmp_path, record_property):
    end = time.monotonic() + SECONDS
    steps = 0
    seed = int(os.environ.get("LMDBQUEUE_FUZZ_SEED", "1"))
    while time.monotonic() < end:
        place = tmp_path / str(seed)
        place.mkdir()
        fuzzer = Fuzzer(str(place), seed)
        try:
            for _ in range(150):
                fuzzer.step()
                steps += 1
        except BaseException as error:
            error.add_note(f"LMDBQUEUE_FUZZ_SEED={seed}, step {sum(fuzzer.told.values())}, {fuzzer.options}")
            raise
        finally:
            fuzzer.close()
        shutil.rmtree(place)
        seed += 1
    record_property("steps of a fuzzer", steps)
