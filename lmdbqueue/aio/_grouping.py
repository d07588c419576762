"""The calls of an event loop that arrived together, done together.

Owns: which calls share a commit, which waiter gets an item. Law: a call gets the result that it would have got alone.
Must not know: threads, the loop, who made a call.

Successive pushes become one push of all their items (if there is no room for it, each is tried alone), single takes one
take; leases of one item become one step, and so do acks, relays and pushes with options. While the disk syncs, the loop
continues, and the next group gathers; so 1,000 concurrent pushes share a few commits. If one call finds nothing, the
others of its kind are not tried: one reading serves all.

While a server is unreachable, each call is tried until its own deadline, regardless of earlier calls.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, Final

from lmdbqueue._base.errors import CommitUnknownError, Full, OptionError, QueueError, ServerError
from lmdbqueue._verbs.lease import Lease, ack_all, delivered, relay_all
from lmdbqueue.aio._jobs import APART, ONE, Ack, AnyHead, Claim, Claimed, Job, Push, RelayTerms, Take, Taken

_SHARED: Final = 1 << 24  # bytes of payloads that share a push
_AT_ONCE: Final = 100  # pushes with options that share one: each is several statements, and other processes wait
_PAYLOADS: Final = attrgetter("payloads")
_DEADLINE: Final = attrgetter("deadline")

Result = tuple[Job, Any, BaseException | None]


class Grouping:
    """How the worker of a queue does calls, and which of them go on waiting."""

    def __init__(self, head: AnyHead) -> None:
        self._head = head
        self._engine = head.engine
        self.sleepers: list[Job] = []  # calls that found nothing, and wait

    def done(self, kind: object, jobs: list[Any]) -> Iterable[Result]:
        """Do jobs of one kind, together where possible."""
        is_one = isinstance(kind, RelayTerms) or (isinstance(kind, Claimed) and kind.is_one)
        if len(jobs) == 1 or self._engine.is_drained or not (is_one or kind in (Push.kind, APART, Ack.kind, ONE)):
            return self._each(jobs)
        jobs = [job for job in jobs if job.take_up()]
        if len(jobs) <= 1:  # the others are cancelled. What fails for one job alone is its error: it is not tried again
            return self._each(jobs)
        if kind == Push.kind:
            return self._shared(jobs, self._pushed)
        if kind == APART:
            return self._shared(jobs, self._pushed_apart)
        if kind == Ack.kind or isinstance(kind, RelayTerms):
            return self._together(jobs, self._acked)
        return self._taken(jobs) if kind == ONE else self._claimed(kind, jobs)

    def _together(self, jobs: list[Any], do: Callable[[list[Any]], list[Result]]) -> Iterator[Result]:
        """Do jobs as one step; while a server is unreachable, repeat it without those whose time is over."""
        while jobs:
            self._engine.hurry(min(map(_DEADLINE, jobs)))
            try:
                yield from do(jobs)
            except Exception as error:
                now = time.monotonic()
                is_away = isinstance(error, ServerError) and self._engine.is_away
                over = [job for job in jobs if job.deadline <= now] if is_away else []
                yield from ((job, None, error) for job in over or jobs)
                jobs = [job for job in jobs if job not in over] if over else []
            except BaseException as error:  # goes to the caller
                yield from ((job, None, error) for job in jobs)
                return
            else:
                return

    def _shared(self, jobs: list[Push], do: Callable[[list[Push]], list[Result]]) -> Iterator[Result]:
        """Push in parts that are small enough to share a commit."""
        most = _AT_ONCE if jobs[0].kind == APART else len(jobs)
        start = size = 0
        for index, job in enumerate(jobs):
            more = sum(map(len, job.payloads))
            if index > start and (size + more > _SHARED or index - start == most):
                yield from self._together(jobs[start:index], do)
                start, size = index, 0
            size += more
        yield from self._together(jobs[start:], do)

    def _pushed(self, jobs: list[Push]) -> list[Result]:
        try:
            self._head.refuse_push()
            start = self._engine.append(list(chain.from_iterable(map(_PAYLOADS, jobs)))).start
        except Full:
            return list(self._each(jobs))
        results: list[Result] = []
        for job in jobs:
            stop = start + len(job.payloads)
            results.append((job, range(start, stop), None))
            start = stop
        return results

    def _pushed_apart(self, jobs: list[Push]) -> list[Result]:
        try:
            self._head.refuse_push()
            found = self._engine.append_each([(job.payloads, job.how) for job in jobs])
        except (Full, OptionError, ValueError):  # of one of them, and nothing was stored
            return list(self._each(jobs))
        results: list[Result] = [(job, pushed, None) for job, pushed in zip(jobs, found, strict=False)]
        return results + list(self._each(jobs[len(found) :]))

    def _acked(self, jobs: list[Ack]) -> list[Result]:
        kind, leases = jobs[0].kind, [job.lease for job in jobs]
        try:
            if isinstance(kind, RelayTerms):
                return self._relayed(jobs, relay_all(self._engine, leases, kind.ttl, self._head.sort_out))
            errors = ack_all(self._engine, [(job.lease, job.seqs) for job in jobs])
        except CommitUnknownError:
            raise
        except QueueError as error:
            if isinstance(error, ServerError) and self._engine.is_away:
                raise
            return list(self._each(jobs))  # on a full disk
        return [(job, None, error) for job, error in zip(jobs, errors, strict=True)]

    def _relayed(self, jobs: list[Ack], found: Sequence[tuple[Exception | None, Any]]) -> list[Result]:
        return [
            (job, None if each is None else delivered(Lease(self._engine, *each)), error)
            for job, (error, each) in zip(jobs, found, strict=True)
        ]

    def _claimed(self, kind: Any, jobs: list[Claim]) -> Iterator[Result]:
        """Lease an item for each, while there are any."""

        def lease(jobs: list[Claim]) -> list[Result]:
            found = self._engine.lease_each(len(jobs), kind.ttl, self._head.sort_out)
            results: list[Result] = [
                (job, delivered(Lease(self._engine, *each)), None) for job, each in zip(jobs, found, strict=False)
            ]
            return results + list(self._each(jobs[len(found) :]))

        return self._together(jobs, lease)

    def _taken(self, jobs: list[Take]) -> Iterator[Result]:
        self._engine.hurry(min(map(_DEADLINE, jobs)))
        try:
            found = self._available(len(jobs))
        except CommitUnknownError as error:  # the items may have left
            yield from ((job, None, error) for job in jobs)
            return
        for entry, item in zip(*found or ((), ()), strict=True):
            yield jobs.pop(0), ([entry], [item]), None
        for job in jobs:
            job.lay_down()
        yield from self._each(jobs)

    def _available(self, n: int) -> Taken | None:
        """Take up to ``n`` items; return None if that fails: then each job is tried alone, and gets its own error."""
        try:
            return self._head.take(n, 0)
        except CommitUnknownError:
            raise
        except BaseException:  # each job gets its own error
            return None

    def _each(self, jobs: Sequence[Job]) -> Iterator[Result]:
        """Do jobs of one kind one by one, except those whose answer an earlier one has already found."""
        known: dict[bool, Any] = {}  # the answer for all waiting jobs, and for all others
        for job in jobs:
            if job.future.done() or not job.take_up():
                continue
            if job.waits not in known:
                if self._engine.is_away and job.deadline <= time.monotonic():
                    yield job, None, self.refusal()
                    continue
                self._engine.hurry(job.deadline)
                try:
                    result = job.run(self._head)
                except BaseException as error:  # goes to the caller, even a SystemExit of loads
                    yield job, None, error
                    continue
                if job.is_for_all(result):
                    known[job.waits] = result
            else:
                result = known[job.waits]
            if result is None and job.waits and not job.is_late:
                job.lay_down()
                self.sleepers.append(job)
            else:
                yield job, result, None

    def refusal(self) -> ServerError:
        """Return the answer to a call whose time is over."""
        return ServerError(self._engine.path, "a call", "the server is away")
