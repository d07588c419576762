"""A power cut after a flush failed: the mark of the swap stands on a transaction that never came to the disk."""

import os
import shutil

import pytest
import seams
from opener import as_after_a_reboot

from lmdbqueue import CommitUnknownError, PersistentQueue
from lmdbqueue._host import directory
from lmdbqueue._lmdb import generation

PAGE = 4096


def _open(place):
    return PersistentQueue("queue", str(place), dumps=bytes, loads=bytes)


def _image(path):
    with open(path, "rb") as file:
        return file.read()


@pytest.fixture
def steps(monkeypatch):
    """Note in which order the doubt comes to the disk and the mark is committed."""
    found = []
    save, supersede = generation.Session.save, generation.Generation.supersede
    monkeypatch.setattr(generation.Session, "save", lambda self: (found.append("saved"), save(self))[1])
    monkeypatch.setattr(
        generation.Generation, "supersede", lambda self, txn: (found.append("mark"), supersede(self, txn))[1]
    )
    return found


def _lose_a_flush(place, monkeypatch):
    """Let a flush of k fail, and the power go when the mark was committed; return what the directory is then.

    Of k nothing came to the disk, and of the mark all.
    """
    with _open(place) as queue:
        queue.push([b"%03d" % number * 50 for number in range(200)])
        path = os.path.join(place, "queue", "00000001.mdb")
        before = _image(path)
        with monkeypatch.context() as patched:
            sync = generation.Generation._sync

            def failing(self, transaction):
                if self.number == 1:
                    with patched.context() as once:
                        once.setattr(self, "_env", _Failing(self._env))
                        sync(self, transaction)
                sync(self, transaction)

            patched.setattr(generation.Generation, "_sync", failing)
            with pytest.raises(CommitUnknownError):
                queue.push(b"never flushed")
        torn = _image(path)
        cut = []
        publish = directory.Directory.publish

        def cut_first(self, number):
            if number == 2 and not cut:
                shutil.copytree(self.path, place / "cut" / "queue")
                cut.append(number)
            return publish(self, number)

        monkeypatch.setattr(directory.Directory, "publish", cut_first)
        queue.push(b"after")
        assert cut
    image = bytearray(_image(place / "cut" / "queue" / "00000001.mdb"))
    for at in range(2 * PAGE, len(image), PAGE):
        if torn[at : at + PAGE] != before[at : at + PAGE] and image[at : at + PAGE] == torn[at : at + PAGE]:
            image[at : at + PAGE] = before[at : at + PAGE]
    (place / "cut" / "queue" / "00000001.mdb").write_bytes(image)
    as_after_a_reboot(place / "cut" / "queue")
    return place / "cut"


class _Failing:
    """An environment of LMDB whose syncs fail."""

    def __init__(self, environment):
        self._environment = environment

    def __getattr__(self, name):
        return getattr(self._environment, name)

    def sync(self, _force):
        raise generation.lmdb.DiskError("Input/output error")


def test_the_draft_takes_the_place_of_a_generation_that_is_in_doubt_and_torn(tmp_path, monkeypatch):
    cut = _lose_a_flush(tmp_path, monkeypatch)
    with _open(cut) as queue:
        assert queue.count() in (200, 201)
        assert queue.check() == []
        assert list(queue)[:200] == [b"%03d" % number * 50 for number in range(200)]


def test_the_doubt_is_on_the_disk_before_the_mark_is_committed(tmp_path, monkeypatch, steps):
    _lose_a_flush(tmp_path, monkeypatch)
    assert "mark" in steps
    assert steps[: steps.index("mark")].count("saved") >= 3  # at opening, when the flush failed, and by the swap


def test_a_doubt_that_is_not_synced_is_found(tmp_path, monkeypatch, steps):
    def forgotten(_before):
        def set_in_doubt(self, generation):
            self._words[2] = generation

        return set_in_doubt

    with seams.replaced("doubt", forgotten) as calls:
        _lose_a_flush(tmp_path, monkeypatch)
    assert calls
    assert steps[: steps.index("mark")].count("saved") < 3
