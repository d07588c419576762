"""Who may write to a queue may run code where it is read, by pickle: nobody else may, or a warning says so."""

import json
import os
import stat
import warnings

import pytest

from lmdbqueue import PersistentQueue


def test_only_the_owner_can_read_or_write_a_new_queue(tmp_path):
    old = os.umask(0)
    try:
        with PersistentQueue("queue", str(tmp_path)) as queue:
            queue.push(range(10))
            queue.flush(force=True)
            modes = {stat.S_IMODE(entry.stat().st_mode) for entry in os.scandir(tmp_path / "queue")}
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(tmp_path / "queue").st_mode) == 0o700
    assert modes == {0o600}


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_queue_that_others_may_write_warns_at_the_line_that_opens_it_once(tmp_path, mode):
    def open_() -> None:
        PersistentQueue("queue", str(tmp_path), dumps=lambda item: json.dumps(item).encode(), loads=json.loads).close()

    open_()
    os.chmod(tmp_path / "queue", mode)
    with warnings.catch_warnings(record=True) as told:
        warnings.resetwarnings()
        open_()
        open_()
    assert [(each.category, each.filename) for each in told] == [(RuntimeWarning, __file__)]
    assert f"mode {mode:o}" in str(told[0].message)


def test_a_queue_of_another_user_warns(tmp_path, needs):
    needs("root")
    PersistentQueue("queue", str(tmp_path)).close()
    os.chown(tmp_path / "queue", 12345, 12345)
    with pytest.warns(RuntimeWarning, match="owned by user 12345"):
        PersistentQueue("queue", str(tmp_path)).close()
