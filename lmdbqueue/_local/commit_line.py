"""The line of calls that wait for a transaction, and the caller that runs them.

Owns: who leads, and who is woken when. Law: a call is in the line until it is done, so calls that an interrupted leader
did not settle are there for the next one; a lone caller does not wait. Must not know: what running a call takes.

A caller puts its call into the line. If there is no leader, it leads: it runs all waiting calls in one transaction
(``_local.group_commit``). Otherwise it waits to be woken, either because its call is done, or to lead the calls that
arrived while the previous group was under way. So calls that arrive while a leader syncs share the next commit, and
each caller is woken once. (If they waited for the lock itself, they would be woken one after the other, and overtaken
by newcomers: that gave groups of 1.7 with 16 threads.) A leader whose recent groups had several calls waits a moment
for more, since those callers were woken just now. An interrupted waiter takes its call out; a call that a leader
already runs is completed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from lmdbqueue._local.group_commit import Call

_PATIENCE: Final = 1.0  # seconds that a caller waits to be woken; only an interrupted leader fails to wake it
_GATHERING: Final = 200e-6  # seconds; 16 threads: 12,500/s with 100e-6, 16,000/s with this


class Line:
    """The calls of one process."""

    def __init__(self, right: threading.RLock, run: Callable[[Sequence[Call]], None]) -> None:
        """``right``: the lock to hold for ``run``, which marks each call ``done`` unless it raises."""
        self._right = right
        self._run = run
        self.waiting: deque[Call] = deque()
        self._leader: dict[str, Call] = {}  # at most one; set by setdefault, a single step that no interrupt splits
        self._company = 1  # calls in recent groups

    def __len__(self) -> int:
        return len(self.waiting)

    def awaits(self, thread: int) -> bool:
        """Return whether calls may wait for a thread, which stands in the line, or has led and is to hand it on."""
        return bool(self.waiting) and any(
            call.thread == thread for call in (*self.waiting.copy(), *self._leader.values())
        )

    def pass_through(self, call: Call) -> None:
        """Wait until a call is done, by this thread or another."""
        self.waiting.append(call)  # before checking for a leader: a leader does it the other way round
        try:
            while not call.done:
                leader = self._leader.setdefault("", call)
                if leader.done or leader.thread == call.thread:
                    # the leader has finished, or was interrupted and may never say so, or this call interrupted it (in
                    # a signal handler) before it took the right; two leaders do no harm
                    self._leader[""] = leader = call
                if leader is call:
                    with self._right:
                        self._lead()
                else:
                    call.await_turn(_PATIENCE)
        except BaseException:
            call.done = True  # no caller waits for it any more; set before anything that another interrupt could stop
            if call in self.waiting:
                self.waiting.remove(call)
            raise
        finally:
            if self.waiting and self._leader.get("", call) is call:
                self._hand_on()  # and only then be none who leads: a handler amid this must not wait for the others
            if self._leader.get("") is call:
                self._leader.pop("", None)

    def _lead(self) -> None:
        """Run all waiting calls. The caller holds the right."""
        if self._company > 1:
            self._gather()
        calls = self.waiting.copy()
        try:
            self._run(calls)
        finally:
            while self.waiting and self.waiting[0].done:
                self.waiting.popleft()
            self._company = max(len(calls), self._company - 1)
            for call in calls:
                call.wake()

    def _gather(self) -> None:
        """Wait a moment for the callers of the last group, which were just woken and may call again."""
        deadline = time.perf_counter() + _GATHERING
        while len(self.waiting) < self._company and time.perf_counter() < deadline:
            time.sleep(0)  # releases the GIL

    def _hand_on(self) -> None:
        """Wake one waiter, to lead the calls that arrived while the last group was under way."""
        with suppress(IndexError):  # another leader has taken them all
            self.waiting[0].wake()
