"""Opens what a power cut may have left, and judges it: in children, on a machine that looks rebooted.

Owns: the directories that states are built in, the children that open them through the public interface. A child
that a signal kills has failed at its state, and the next one goes on behind it. A library that notes the boot or
the mount must find others than those of the recording (``pretend_reboot``).
"""

import ctypes
import faulthandler
import logging
import mmap
import os
import pickle
import resource
import shutil
import tempfile
import traceback
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from struct import Struct

import mutants
from account import Judge, inspect, open_queue
from disk import State
from processes import forked, status_of

from lmdbqueue._host import session

_BOOT_AT = 24  # in the file ``session``
_IDENTITY, _IDENTITY_AT = Struct("=QQ"), 48  # its inode and birth
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_CLONE_NEWNS, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000


@dataclass(frozen=True, slots=True)
class Case:
    """A state to open, and what may be found in it."""

    state: State
    locks: State
    accounts: dict[str, Judge]
    label: str
    again: bool
    is_copy: bool  # of the directory that the cut left


def build(place: str, state: State, *, is_copy: bool = False) -> None:
    """Make the directory ``place`` with these files in it."""
    os.mkdir(place)
    for path, content in state.items():
        full = os.path.join(place, path)
        if content is None:
            os.mkdir(full, 0o700)
        else:
            fd = os.open(full, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(fd, content.data)
            os.ftruncate(fd, content.size)
            if os.path.basename(path) == "session" and content.size == session.SIZE and not is_copy:
                _set_identity(fd)
            os.close(fd)


def as_after_a_reboot(directory: str | os.PathLike[str]) -> None:
    """Make a queue's directory, which was copied while it was open, look as if it was in use when the power went."""
    fd = os.open(os.path.join(directory, "session"), os.O_RDWR)
    try:
        _set_identity(fd)
    finally:
        os.close(fd)


def _set_identity(fd: int) -> None:
    """Let the file ``session`` be the one that was used, which it was not, in another boot, unless it was closed."""
    if os.pread(fd, 16, _BOOT_AT) != session.CLOSED:
        os.pwrite(fd, b"\xee" * 16, _BOOT_AT)
    os.pwrite(fd, _IDENTITY.pack(*session._mount_and_birth(fd)[1:]), _IDENTITY_AT)


def remove(place: str) -> None:
    """Remove what ``build`` made, and what was added to it."""
    for entry in os.scandir(place):
        if entry.is_dir():
            remove(entry.path)
        else:
            os.unlink(entry.path)
    os.rmdir(place)


def problem_of(case: Case, place: str) -> str:
    """Open the state in ``place``; return what is wrong."""
    try:
        *others, last = case.accounts
        all_found = {}
        with ExitStack() as stack:
            if others and not case.again:
                stack.enter_context(open_queue(place, last))  # so that the others are opened at little cost
            for name, account in case.accounts.items():
                found = inspect(place, name, proves=name == last, again=case.again)
                all_found[name] = found
                if problem := account.problem(found):
                    return f"{name[-20:]}: {problem}"
            return "".join(account.problem_of_all(all_found) for account in case.accounts.values())
    except BaseException:
        return traceback.format_exc()
    return ""


def open_all(cases: list[Case], place: str, keep: str, mutant: str = "") -> list[str]:
    """Open each of the cases, in children; return what is wrong, and keep the states of it in ``keep``."""
    failures: list[str] = []
    at = mmap.mmap(-1, 8)  # which case a child is at; it outlives the child
    position = memoryview(at).cast("Q")
    fd, report = tempfile.mkstemp(dir=place)

    def work(first: int) -> None:
        logging.getLogger("lmdbqueue").addHandler(logging.NullHandler())  # which tells of each recovery
        faulthandler.disable()  # a death by signal is reported by the parent
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if mutant:
            mutants.OPENING[mutant].apply()
        for number in range(first, len(cases)):
            position[0] = number
            here = os.path.join(place, str(number))
            build(here, {**cases[number].state, **cases[number].locks}, is_copy=cases[number].is_copy)
            if problem := problem_of(cases[number], here):
                os.write(fd, pickle.dumps((number, problem)))
            remove(here)

    first = 0
    while first < len(cases):
        try:
            status: object = status_of(forked(work, first))
        except AssertionError as error:  # it hangs, as LMDB may in a tree that is none; the state is kept like others
            status = error
        first = position[0] + 1
        if status != 0:
            shutil.rmtree(os.path.join(place, str(position[0])), ignore_errors=True)
            os.write(fd, pickle.dumps((position[0], f"the process that opened it ended with {status}")))
    position.release()
    with open(report, "rb") as file:
        while file.peek(1):
            number, problem = pickle.load(file)
            case = cases[number]
            name = f"{len(os.listdir(keep)):03}"
            build(os.path.join(keep, name), {**case.state, **case.locks})
            failures.append(f"{case.label}: {problem} (kept in {keep}/{name})")
    os.close(fd)
    os.unlink(report)
    return failures


# --- a machine after a reboot


def pretend_reboot() -> None:
    """Give this process another boot id, and mounts that nobody has seen. Takes root."""
    own_mounts()
    with tempfile.NamedTemporaryFile("w", encoding="ascii") as file:
        file.write(f"{uuid.uuid4()}\n")
        file.flush()
        _libc("mount", file.name.encode(), _BOOT_ID.encode(), None, _MS_BIND, None)


def own_mounts() -> None:
    """Give this process mounts of its own, which are gone when it and its children are."""
    _libc("unshare", _CLONE_NEWNS)
    _libc("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)


def _libc(function: str, *args: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*args):
        raise OSError(ctypes.get_errno(), f"{function}: {os.strerror(ctypes.get_errno())}")
