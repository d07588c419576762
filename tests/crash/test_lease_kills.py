"""Consumers with leases that are killed again and again: a log of every event is read by a checker.

LMDBQUEUE_KILLS says how many kills the long form deals out.
"""

import json
import os
import random
import select
import signal
import time
from collections import defaultdict

import pytest
from processes import DEADLINE, KILLED, forked, in_a_small_process, status_of

from lmdbqueue import PersistentQueue

CONSUMERS = 4
KILLS = 100
LONG = int(os.environ.get("LMDBQUEUE_KILLS", "5000"))
SUPPLY = 1_000  # items that are pushed at a time


def _consume(path, mouth):
    chance = random.Random(os.getpid())  # noqa: S311
    queue = PersistentQueue("queue", path)

    def tell(event, seqs, attempts=()):
        os.write(mouth, json.dumps([os.getpid(), event, seqs, list(attempts)]).encode() + b"\n")

    while True:
        lease = queue.lease(chance.randrange(1, 8), blocking=True, timeout=DEADLINE)
        assert lease.items == [f"item {seq}" for seq in lease.seqs]
        tell("lease", lease.seqs, lease.attempts)
        for _ in range(chance.randrange(3_000)):
            pass
        if chance.random() < 0.2:
            some = lease.seqs[: chance.randrange(1, len(lease) + 1)]
            tell("nack", some)  # before it: another may have them at once
            lease.nack(some)
        left = [seq for seq in lease.seqs if seq in lease._held]
        lease.ack()
        tell("ack", left)


def problem(events, killed):
    """Return what is wrong with a log of events, "" for nothing.

    A consumer tells of a lease after it has it, of an ack after it is done, and of a nack before.
    """
    holder = {}
    acked = set()
    leases = defaultdict(int)
    for pid, event, seqs, attempts in events:
        for index, seq in enumerate(seqs):
            if seq in acked:
                return f"{event} of item {seq}, which was acknowledged"
            if event == "lease":
                if seq in holder and holder[seq] not in killed:
                    return f"item {seq} went to {pid} while {holder[seq]}, which was never killed, had it"
                leases[seq] += 1
                if attempts[index] < leases[seq]:
                    return f"item {seq} was leased {leases[seq]} times, and {attempts[index]} were counted"
                holder[seq] = pid
            elif holder.get(seq) != pid:
                return f"{event} of item {seq} by {pid}, and {holder.get(seq)} had it"
            elif event == "ack":
                acked.add(seq)
            else:
                del holder[seq]
    return ""


GOOD = [(1, "lease", [0, 1], [1, 1]), (1, "nack", [0], []), (2, "lease", [0], [2]), (1, "ack", [1], [])]


def test_the_checker_finds_what_is_wrong():
    assert problem(GOOD, set()) == ""
    assert problem([*GOOD, (3, "lease", [0], [3])], {2}) == ""
    assert "had it" in problem([*GOOD, (3, "lease", [0], [3])], {1})
    assert "acknowledged" in problem([*GOOD, (3, "lease", [1], [2])], {1, 2})
    assert "had it" in problem([*GOOD, (1, "ack", [0], [])], set())
    assert "were counted" in problem([*GOOD[:2], (2, "lease", [0], [1])], set())


def _run(path, kills):
    chance = random.Random(kills)  # noqa: S311
    items = 0
    ear, mouth = os.pipe()
    alive = [forked(_consume, path, mouth) for _ in range(CONSUMERS)]
    killed = set()
    events, rest = [], b""
    acked = 0
    deadline = time.monotonic() + DEADLINE + kills / 5

    def listen():
        nonlocal rest, acked
        assert select.select([ear], [], [], max(0, deadline - time.monotonic()))[0], "the consumers stand still"
        *lines, rest = (rest + os.read(ear, 1 << 16)).split(b"\n")
        new = [json.loads(line) for line in lines]
        events.extend(new)
        acked += sum(len(event[2]) for event in new if event[1] == "ack")

    while len(killed) < kills:
        with PersistentQueue("queue", path) as queue:
            if len(queue) < SUPPLY:
                queue.push([f"item {seq}" for seq in range(items, items + SUPPLY)])
                items += SUPPLY
        wanted = acked + chance.randrange(10)
        while acked < wanted:
            listen()
        for _ in range(chance.randrange(20_000)):
            pass
        pid = alive.pop(chance.randrange(CONSUMERS))
        os.kill(pid, signal.SIGKILL)
        assert status_of(pid) == KILLED
        killed.add(pid)
        alive.append(forked(_consume, path, mouth))
    with PersistentQueue("queue", path) as queue:
        while True:
            stats = queue.stats()
            if not stats.waiting and not stats.leased:
                break
            if select.select([ear], [], [], 0.01)[0]:
                listen()
            assert time.monotonic() < deadline, f"{stats}"
        assert queue.check() == []
        assert (stats.delayed, stats.dead, stats.removed) == (0, 0, items)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        assert status_of(pid) == KILLED
    os.close(mouth)
    with open(ear, "rb") as pipe:
        events += [json.loads(line) for line in (rest + pipe.read()).splitlines()]
    assert problem(events, killed | set(alive)) == problem(events, killed) == ""
    return events, killed, items


def test_every_item_is_acknowledged_once_and_comes_again_only_when_its_consumer_died(tmp_path, record_property):
    events, killed, _ = in_a_small_process(_run, tmp_path, KILLS)
    again = [event for event in events if event[1] == "lease" and max(event[3]) > 1]
    assert len(again) > KILLS / 10, "nobody was killed with a lease"
    record_property("kills", len(killed))


@pytest.mark.long
def test_many_more_kills_of_consumers_lose_and_double_nothing(tmp_path, record_property):
    _, killed, items = in_a_small_process(_run, tmp_path, LONG)
    record_property("kills", len(killed))
    record_property("items", items)
