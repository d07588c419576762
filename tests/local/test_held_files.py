"""What a flush gave back and others hold still: it is said, and let go of."""

import logging
import os
import signal
from contextlib import suppress

from processes import eventually, forked, status_of, touch

from lmdbqueue import Empty, PersistentQueue
from lmdbqueue.cli import main


def _idle(place, ready):
    with PersistentQueue("queue", place) as queue:
        assert len(queue)
        touch(ready)
        signal.pause()


def _waiting(place, ready):
    with PersistentQueue("queue", place, name="other") as queue:
        touch(ready)
        with suppress(Empty):
            queue.get(timeout=30)


def test_a_flush_says_how_many_hold_the_old_file(tmp_path, caplog):
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push([b"x" * 100_000] * 50)
        queue.delete(49)
        ready = os.fspath(tmp_path / "ready")
        children = [forked(_idle, tmp_path, f"{ready} {number}") for number in range(2)]
        eventually(lambda: all(os.path.exists(f"{ready} {number}") for number in range(2)))
        with caplog.at_level(logging.INFO, "lmdbqueue"):
            assert queue.flush(force=True) > 1_000_000
        assert "2 processes have not let go of the old file yet" in caplog.text
        assert queue._engine.environment.held_elsewhere() == 2
        os.kill(children[0], signal.SIGKILL)
        assert status_of(children[0]) == -signal.SIGKILL
        assert queue._engine.environment.held_elsewhere() == 1
        os.kill(children[1], signal.SIGKILL)
        assert status_of(children[1]) == -signal.SIGKILL
        assert queue._engine.environment.held_elsewhere() == 0


def test_the_command_says_so_after_a_second(tmp_path, capfd):
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push([b"x" * 100_000] * 50)
        queue.delete(49)
    ready = os.fspath(tmp_path / "ready")
    child = forked(_idle, tmp_path, ready)
    eventually(lambda: os.path.exists(ready))
    assert main(["flush", os.fspath(tmp_path / "queue"), "--force"]) == 0
    assert "1 process holds the old file" in capfd.readouterr().out
    os.kill(child, signal.SIGKILL)
    assert status_of(child) == -signal.SIGKILL


def test_who_waits_lets_go_within_a_second(tmp_path):
    with PersistentQueue("queue", tmp_path) as queue:
        queue.push([b"x" * 100_000] * 50)
        ready = os.fspath(tmp_path / "ready")
        child = forked(_waiting, tmp_path, ready)
        eventually(lambda: os.path.exists(ready))
        queue.delete(49)
        queue.flush(force=True)
        eventually(lambda: queue._engine.environment.held_elsewhere() == 0, 5)
        os.kill(child, signal.SIGKILL)
        status_of(child)
