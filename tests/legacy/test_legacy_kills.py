"""SIGKILL amid an import: nothing of it is there or all, and running it again brings each item once and in order.

LMDBQUEUE_KILLS says how many kills at random the long form deals out.
"""

import base64
import functools
import json
import os
import pkgutil
import random
import shutil
import signal
import time

import pytest
from old_queues import write_acks, write_chunks, write_file, write_litequeue, write_queuelib
from processes import KILLED, MODULES, forked, in_a_small_process, kill_at_every_line, status_of, tree

from lmdbqueue import PersistentQueue, legacy
from lmdbqueue.legacy import Imported, import_file

IMPORTING = [f"legacy/{module.name}" for module in pkgutil.iter_modules(legacy.__path__)]
KILLS = int(os.environ.get("LMDBQUEUE_KILLS", "50000")) // 25
TOLD = "kills"
BEFORE = ["was", "here", "before"]


def _imported(place: str) -> Imported:
    return import_file(os.path.join(place, "old", "queue"), os.path.join(place, "new"))


def _set_aside(path: str) -> list[bytes]:
    with open(path, encoding="ascii") as file:
        return [base64.b64decode(json.loads(line)["value"]) for line in file]


def _items(place: str) -> list[object]:
    """Return what others see; nothing where no queue is."""
    if not os.path.exists(os.path.join(place, "new", "queue.json")):
        return []
    with PersistentQueue("new", place) as queue:
        return list(queue)


def _judge(place: str, before: list[object], expected, *, is_done: bool) -> None:
    untouched = tree(os.path.join(place, "old"))
    everything = [*before, *expected.items]
    assert _items(place) in ([everything] if is_done else [before, everything])
    for _ in range(2):
        imported = _imported(place)
        assert (imported.items, imported.finished) == (len(expected.items), expected.finished)
        assert _items(place) == everything
        assert imported.set_aside == len(expected.set_aside)
        if expected.set_aside:
            assert _set_aside(imported.quarantine) == expected.set_aside
    assert tree(os.path.join(place, "old")) == untouched
    assert not [name for name in os.listdir(place) if name.endswith(".tmp")]
    with PersistentQueue("new", place) as queue:
        assert queue.check() == []


def _kill(memory: str, build, modules, before: list[str]) -> int:
    root = os.path.join(memory, "root")
    os.makedirs(os.path.join(root, "old"))
    expected = build(os.path.join(root, "old", "queue"))
    if before:
        with PersistentQueue("new", root) as queue:
            queue.push(before)

    def judge(place: str, *, is_done: bool) -> None:
        _judge(place, before, expected, is_done=is_done)

    return kill_at_every_line(root, modules, lambda place: functools.partial(_imported, place), judge)


@pytest.mark.parametrize("build", [write_file, write_chunks, write_acks, write_litequeue, write_queuelib])
def test_an_import_killed_at_any_of_its_lines_is_done_by_the_next_run(memory, build, record_property):
    record_property(TOLD, in_a_small_process(_kill, memory, build, IMPORTING, []))


def test_an_import_into_a_queue_that_is_there_killed_at_any_of_its_lines_too(memory, record_property):
    record_property(TOLD, in_a_small_process(_kill, memory, write_file, IMPORTING, BEFORE))


@pytest.mark.long
def test_an_import_killed_at_any_line_of_the_library_is_done_by_the_next_run(memory, record_property):
    record_property(TOLD, in_a_small_process(_kill, memory, write_file, [*MODULES, *IMPORTING], BEFORE))


def _kill_at_random(memory: str, kills: int) -> int:
    """Kill the same import again and again, at a moment between its begin and its end; return how many died."""
    root = os.path.join(memory, "root")
    os.makedirs(os.path.join(root, "old"))
    expected = write_file(os.path.join(root, "old", "queue"))
    chance = random.Random(kills)  # noqa: S311
    begin = time.perf_counter()
    assert status_of(forked(_imported, shutil.copytree(root, f"{root} once"))) == 0
    span = time.perf_counter() - begin
    died = 0
    for number in range(kills):
        place = shutil.copytree(root, f"{root} {number}")
        for _ in range(3):  # a run that goes on where one was killed may be killed, too
            pid = forked(_imported, place)
            time.sleep(chance.uniform(0, span))
            os.kill(pid, signal.SIGKILL)
            status = status_of(pid)
            assert status in (0, KILLED)
            died += status == KILLED
        _judge(place, [], expected, is_done=status == 0)
        shutil.rmtree(place)
    return died


def test_an_import_killed_again_and_again_at_random_brings_each_item_once(memory, record_property):
    killed = in_a_small_process(_kill_at_random, memory, 25)
    assert killed > 10
    record_property(TOLD, killed)


@pytest.mark.long
def test_an_import_killed_very_often_at_random_brings_each_item_once(memory, record_property):
    record_property(TOLD, in_a_small_process(_kill_at_random, memory, KILLS))
