"""What is free after a power cut is written over, and nothing else."""

import os
import random
import shutil

import pytest
from lmdb import verify
from processes import generations

from lmdbqueue import PersistentQueue
from lmdbqueue._lmdb import free_pages, meta_page


@pytest.fixture
def worn(tmp_path):
    """A queue that was used a lot: its list of free pages is a tree, with records on pages of their own."""
    with PersistentQueue("queue", str(tmp_path), durability="off") as queue:
        chance = random.Random(0)  # noqa: S311
        for _ in range(300):
            queue.push([chance.randbytes(chance.choice((10, 500, 9_000))) for _ in range(50)])
            queue.delete(chance.randrange(50))
        queue.delete(4_000)
        yield queue


def _path(queue) -> str:
    directory = os.path.join(queue.path, queue.filename)
    (name,) = generations(directory)
    return os.path.join(directory, name)


def test_the_list_of_free_pages_is_read_as_lmdb_reads_it(worn):
    newest, _ = meta_page.read(_path(worn))
    with open(_path(worn), "rb") as file:
        found = list(free_pages.free_pages(file.fileno(), newest))
        verifier = verify._Verifier(file, os.fstat(file.fileno()).st_size)
        verifier.verify()
    assert len(found) > 2 * newest.page_size // 8
    assert sorted(found) == [number for number, is_free in enumerate(verifier.free) if is_free]


def test_the_first_to_open_what_was_not_closed_here_writes_over_all_that_is_free_and_nothing_else(worn, tmp_path):
    items = list(worn)
    shutil.copytree(tmp_path / "queue", tmp_path / "copy")
    assert any(_free_bytes(worn))
    with PersistentQueue("copy", str(tmp_path), durability="off") as copy:
        assert not any(_free_bytes(copy))
        assert list(copy) == items
        assert copy.check() == []


def _free_bytes(queue):
    newest, _ = meta_page.read(_path(queue))
    with open(_path(queue), "rb") as file:
        for number in free_pages.free_pages(file.fileno(), newest):
            yield any(os.pread(file.fileno(), newest.page_size, number * newest.page_size))
        yield any(os.pread(file.fileno(), 1 << 30, newest.size))
