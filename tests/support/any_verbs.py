"""Verbs by chance, for tests that prove the file after each.

Owns: which verbs there are, with what values: large and small ones, batches, blocks, partial acks, states that shrink.
With a clock, what they do depends on the seed only: their entropy is seeded, too.
"""

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from clocks import Clock

from lmdbqueue import Lease, LeaseExpiredError, PersistentQueue
from lmdbqueue._verbs.encoding import how_to_push
from lmdbqueue._verbs.lease import delivered
from lmdbqueue._verbs.reading import head_of

SIZES = (0, 1, 20, 20, 100, 100, 900, 1_980, 2_000, 2_040, 3_000, 4_000, 4_081, 9_000, 20_000, 40_000)
COUNTS = (1, 1, 2, 5, 30, 30, 300)
SIZES_IN_A_BLOCK = ((20_000, 9_000), (9_000, 0), (3_000, 6_000, 10), (20,), (40_000, 4_082), (5,))
NAMES = ("one", "two", "three")
PAUSES = (0.0, 0.0, 0.0, 0.002, 0.06, 70.0)  # seconds between verbs: few values, so that deadlines often are the same


class AnyVerbs:
    """Any verb on any of some queues in one directory. ``random`` chooses it, and ``values`` what it stores.

    ``clock``: the one of the queues, which goes on between verbs; None: real time, and real entropy.
    """

    def __init__(
        self,
        place: str,
        seed: int,
        sizes: Sequence[int] = SIZES,
        counts: Sequence[int] = COUNTS,
        without: Sequence[str] = (),
        clock: Clock | None = None,
        **options: Any,
    ) -> None:
        self.random, self.values = random.Random(seed), random.Random(seed)  # noqa: S311
        self.sizes, self.counts = sizes, counts
        self.clock, self._entropy = clock, random.Random(seed)  # noqa: S311
        with self._determined():
            self.queues = [
                PersistentQueue("queue", place, dumps=bytes, loads=bytes, name=name, max_attempts=3, **options)
                for name in NAMES
            ]
        if clock is not None:
            for queue in self.queues:
                clock.given_to(queue)
        self.verbs = [verb for verb in dir(self) if verb.startswith("do_") and verb not in without]
        self.leases: list[Lease[bytes]] = []

    def size(self):
        return self.random.choice(self.sizes)

    def items(self):
        count = self.random.choice(self.counts)
        return [self.values.randbytes(min(self.size(), 80_000 // count)) for _ in range(count)]

    @contextmanager
    def _determined(self) -> Iterator[None]:
        """Let ids that are drawn in the block (of owners, directories and salts) depend on the seed, given a clock."""
        before = os.urandom
        if self.clock is not None:
            os.urandom = self._entropy.randbytes
        try:
            yield
        finally:
            os.urandom = before

    def step(self):
        if self.clock is not None:
            self.clock.go_on(self.random.choice(PAUSES))
        queue = self.random.choice(self.queues)
        verb = self.random.choice(self.verbs)
        with self._determined():
            getattr(self, verb)(queue)
        return verb

    def do_push(self, queue):
        queue.push(self.items())

    def do_push_more(self, queue):
        queue.push(self.items())

    def do_push_delayed(self, queue):
        queue.push(self.items(), delay=self.random.choice((0.001, 0.05, 100.0)))

    def do_push_unique(self, queue):
        queue.push(self.values.randbytes(self.size()), unique=str(self.random.randrange(30)))

    def do_pop(self, queue):
        queue.pop(self.random.choice((1, 1, 3, 50)))

    def do_delete(self, queue):
        queue.delete(self.random.choice((1, 10, 200)))

    def do_clear(self, queue):
        if self.random.random() < 0.2:
            queue.clear(all=self.random.random() < 0.5)

    def do_lease(self, queue):
        lease = queue.lease(self.random.choice((1, 4, 40)), ttl=self.random.choice((None, 0.02, 60.0)))
        if lease:
            self.leases.append(lease)

    def do_lease_together(self, queue):
        engine, ttl = queue._engine, self.random.choice((None, 0.02, 60.0))
        found = engine.lease_each(self.random.choice((2, 5, 30)), ttl, head_of(queue).sort_out)
        self.leases += [delivered(Lease(engine, *each)) for each in found]

    def do_push_together(self, queue):
        pushes = []
        for _ in range(self.random.choice((2, 3, 8))):
            unique = str(self.random.randrange(30)) if self.random.random() < 0.5 else None
            how = {"replace": unique is not None and self.random.random() < 0.5, "expires": None, "headers": {"h": "1"}}
            push = how_to_push(1, delay=self.random.choice((0.0, 0.05)), unique=unique and [unique], priority=0, **how)
            pushes.append(([self.values.randbytes(min(self.size(), 6_000))], push))
        queue._engine.append_each(pushes)

    def do_relay(self, queue):
        """End leases of one item, and lease as many others in the same commit."""
        engine = queue._engine
        ended = [each for each in self.leases if each._engine is engine and len(each.seqs) == 1]
        ended = ended[: self.random.choice((1, 1, 3, 20))]
        self.leases = [each for each in self.leases if each not in ended]
        if ended:
            asked = [(lease._token, None) for lease in ended]
            relayed = engine.relay_each(asked, self.random.choice((None, 0.02)), head_of(queue).sort_out)
            self.leases += [delivered(Lease(engine, *found)) for _, found in relayed if found is not None]

    def do_end_a_part_of_a_lease(self, _queue):
        if not self.leases:
            return
        lease = self.random.choice(self.leases)
        seqs = [seq for seq in lease.seqs if self.random.random() < 0.5]
        try:
            if self.random.random() < 0.5:
                lease.ack(seqs)
            else:
                delay = self.random.choice((0.0, 0.01, 50.0))
                lease.nack(seqs, delay=delay, reason="r" * self.random.choice((0, 900)))
        except LeaseExpiredError:
            self.leases.remove(lease)

    def do_end_a_lease(self, _queue):
        if self.leases:
            lease = self.leases.pop(self.random.randrange(len(self.leases)))
            with suppress(LeaseExpiredError):
                self.random.choice((lease.ack, lease.nack))()

    def do_state(self, queue):
        with queue.transaction():
            key = f"{self.random.randrange(9)}"
            for size in self.random.choice(
                ((20_000, 9_000), (9_000, 0), (3_000, 6_000, 10), (20,), (40_000, 4_082), (5,))
            ):
                queue.state[key] = self.values.randbytes(size)
            if self.random.random() < 0.2:
                del queue.state[key]

    def do_toggle(self, queue):
        """Let a record become what it was two transactions ago."""
        queue.state["toggle"] = b"01"[self.random.randrange(2) :][:1]

    def do_bury(self, queue):
        lease = queue.lease(self.random.choice((1, 10)))
        if lease:
            lease.nack(reason="r")

    def do_exhume(self, queue):
        seqs = [letter.seq for letter in queue.dead]
        if seqs:
            queue.dead.requeue(self.values.sample(seqs, max(1, len(seqs) // 3)))

    def do_move(self, queue):
        queue.move(
            self.random.choice((1, 5, 60)), to=self.random.choice([each for each in self.queues if each is not queue])
        )

    def do_block(self, _queue):
        with self.random.choice(self.queues).transaction():
            for _ in range(self.random.randrange(1, 6)):
                queue = self.random.choice(self.queues)
                self.random.choice((self.do_push, self.do_pop, self.do_state, self.do_push_delayed, self.do_move))(
                    queue
                )

    def do_undone_block(self, queue):
        with suppress(ZeroDivisionError), queue.transaction():
            queue.push(self.items())
            queue.pop(3)
            raise ZeroDivisionError

    def do_flush(self, queue):
        if self.random.random() < 0.2:
            queue.flush(force=True)

    def close(self):
        for queue in self.queues:
            queue.close()
