"""Queues that old releases of other libraries wrote are imported with all their items, whichever release that was."""

import os
import shutil

import pytest
from make_golden_legacy import BYTES, GOLDEN, ITEMS, PLACE, TEXTS
from processes import tree

from lmdbqueue import PersistentQueue
from lmdbqueue.legacy import detect, import_file

FORMATS = {
    ("python-persistent-queue", "file"): ("python-persistent-queue", ITEMS),
    ("persist-queue", "files"): ("persist-queue files", ITEMS),
    ("persist-queue", "table"): ("persist-queue SQLite", ITEMS),
    ("persist-queue", "acks"): ("persist-queue SQLite", ITEMS),
    ("litequeue", "table"): ("litequeue", TEXTS),
    ("queuelib", "files"): ("queuelib files", BYTES),
    ("queuelib", "table"): ("queuelib SQLite", BYTES),
}


@pytest.mark.parametrize(("package", "version", "kind"), GOLDEN)
def test_what_an_old_release_wrote_is_imported(tmp_path, package, version, kind):
    old = os.path.join(PLACE, f"{package}-{version}-{kind}")
    (shutil.copytree if os.path.isdir(old) else shutil.copy)(old, tmp_path / "old")
    before = tree(tmp_path)
    format_, items = FORMATS[package, kind]
    assert detect(tmp_path / "old") == format_
    imported = import_file(tmp_path / "old", tmp_path / "new")
    assert (imported.format, imported.items, imported.set_aside, imported.notes) == (format_, 4, 0, ())
    assert imported.finished == (kind == "acks" or package == "litequeue")
    with PersistentQueue("new", tmp_path) as queue:
        assert list(queue) == items[1:]
        assert queue.check() == []
    shutil.rmtree(tmp_path / "new")
    assert tree(tmp_path) == before


def test_there_is_nothing_else_in_the_golden_directory():
    assert sorted(os.listdir(PLACE)) == sorted("-".join(key) for key in GOLDEN)
