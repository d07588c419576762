"""What root does in the queue of another does not lock that one out, whatever becomes of root's process."""

import os
import pickle
import shutil
import signal
import tempfile
import warnings

import pytest
from processes import forked, status_of, tree

import lmdbqueue
from lmdbqueue import PersistentQueue, check
from lmdbqueue.legacy import import_file

USER, GROUP = 12345, 12346


@pytest.fixture
def place(needs):
    """Give a directory of a user, who can reach it."""
    needs("root")
    path = tempfile.mkdtemp()  # tmp_path is in a directory of root's
    create(
        path
    )  # so that all is imported that is imported when it is needed: the user may not read what root installed
    use(path, 0, 0)
    shutil.rmtree(os.path.join(path, "queue"))
    os.chown(path, USER, GROUP)
    yield path
    shutil.rmtree(path)


def as_user(fn, *args):
    """Run ``fn(*args)`` in a child that is the user."""

    def run():
        os.setgroups([])
        os.setgid(GROUP)
        os.setuid(USER)
        warnings.simplefilter("error")
        fn(*args)

    assert status_of(forked(run)) == 0


def give_to_root(place):
    """Let the directory that the queue's is in be root's, as /var/spool is."""
    os.chown(place, 0, 0)
    os.chmod(place, 0o755)  # noqa: S103


def create(place):
    with PersistentQueue("queue", place) as queue:
        queue.push(list(range(10)))


def use(place, user=USER, group=GROUP):
    """Do all that there is to do with files, and find nothing that the user cannot change."""
    with PersistentQueue("queue", place, max_attempts=3) as queue:
        queue.push(["x"] * 4)
        wait(queue)
        with queue.lease(1, ttl=60) as lease:
            assert len(lease) == 1
        queue.flush(force=True)
        queue.delete(2)
        assert queue.check() == []
    for entry in os.scandir(os.path.join(place, "queue")):
        assert (entry.stat().st_uid, entry.stat().st_gid) == (user, group), entry.name


def look(queue):
    queue.stats()


def change(queue):
    queue.push("root's")
    queue.pop()


def wait(queue):
    with pytest.raises(lmdbqueue.Empty):
        queue.peek(1000, blocking=True, timeout=0.001)


def flush(queue):
    queue.flush(force=True)


def drop(queue):
    with PersistentQueue("queue", queue.path, name="other"):
        pass
    queue.drop_queue("other")


def lease_and_die(queue):
    queue.lease(2)
    os.kill(os.getpid(), signal.SIGKILL)


def as_root(place, fn):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is owned by another
        queue = PersistentQueue("queue", place)
        fn(queue)
        queue.close()


@pytest.mark.parametrize("fn", [look, change, wait, flush, drop, lease_and_die])
@pytest.mark.parametrize("lost", [(), ("bell", "session", "00000001.mdb-lock")])
def test_what_root_makes_in_the_queue_of_another_is_that_ones(place, fn, lost):
    as_user(create, place)
    for name in lost:  # as after a directory was moved, or restored
        if os.path.exists(os.path.join(place, "queue", name)):
            os.unlink(os.path.join(place, "queue", name))
    status = status_of(forked(as_root, place, fn))
    assert status == (-signal.SIGKILL if fn is lease_and_die else 0)
    as_user(use, place)


def test_the_owner_can_use_a_queue_while_root_has_it_open(place):
    as_user(create, place)
    with pytest.warns(RuntimeWarning, match="owned by user"):
        queue = PersistentQueue("queue", place)
    lease = queue.lease(1)
    as_user(use, place)
    lease.ack()
    assert queue.pop() is not None
    queue.close()


def test_what_a_killed_lease_of_root_held_comes_back_to_the_owner(place):
    as_user(create, place)
    assert status_of(forked(as_root, place, lease_and_die)) == -signal.SIGKILL

    def demand():
        with PersistentQueue("queue", place) as queue:
            assert queue.pop(10) == list(range(10))

    as_user(demand)


def test_a_queue_that_root_makes_in_a_directory_of_a_user_is_that_ones(place):
    os.mkdir(os.path.join(place, "queue"), 0o700)
    os.chown(os.path.join(place, "queue"), USER, GROUP)
    assert status_of(forked(as_root, place, change)) == 0
    as_user(create, place)
    as_user(use, place)


def test_a_repair_by_root_leaves_a_quarantine_that_the_owner_can_add_to(place):
    def damage():
        os.makedirs(os.path.join(place, "queue"), exist_ok=True)
        with PersistentQueue("queue", place) as queue:
            queue.push("DAMAGED" * 5)
        for name in os.listdir(os.path.join(place, "queue")):
            if name.endswith(".mdb"):
                with open(os.path.join(place, "queue", name), "r+b") as file:
                    content = file.read()
                    file.seek(0)
                    file.write(content.replace(b"DAMAGED", b"damaged"))

    def repair():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert any("quarantine" in each for each in check(os.path.join(place, "queue"), repair=True))

    as_user(damage)
    give_to_root(place)
    assert status_of(forked(repair)) == 0
    as_user(use, place)
    as_user(damage)
    as_user(repair)
    found = os.stat(os.path.join(place, "queue.quarantine"))
    assert (found.st_uid, found.st_gid) == (USER, GROUP)


def test_an_import_by_root_sets_aside_what_the_owner_can_read(place):
    as_user(create, place)
    give_to_root(place)
    payload = pickle.dumps("old")
    with open(os.path.join(place, "old"), "wb") as file:
        file.write(b"".join(n.to_bytes(4, "little") for n in (0, 8, len(payload))) + payload)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = import_file(os.path.join(place, "old"), os.path.join(place, "queue"))
    assert done.set_aside == 1
    assert os.stat(done.quarantine).st_uid == USER
    as_user(use, place)


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o777])
def test_another_user_is_refused_and_changes_nothing(place, mode):
    as_user(create, place)
    os.chmod(place, 0o755)  # noqa: S103
    os.chmod(os.path.join(place, "queue"), mode)
    before = tree(place)

    def intrude():
        os.setgroups([])
        os.setgid(GROUP + 1)
        os.setuid(USER + 1)
        with pytest.raises(lmdbqueue.AccessError):
            PersistentQueue("queue", place)

    assert status_of(forked(intrude)) == 0
    assert tree(place) == before


@pytest.mark.parametrize("how", ["symlink", "link"])
def test_no_file_from_elsewhere_is_given_away(place, tmp_path, how):
    as_user(create, place)
    (tmp_path / "mine").write_bytes(b"\0")
    bell = os.path.join(place, "queue", "bell")
    os.unlink(bell)
    getattr(os, how)(tmp_path / "mine", bell)
    assert status_of(forked(as_root, place, change)) == 0
    assert os.stat(tmp_path / "mine").st_uid == 0
