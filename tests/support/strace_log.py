"""What processes did to the files of one directory, from the record that strace made of them.

Owns: running a command under strace, reading its record. The answer is a list of events in the order in
which strace saw them. A system call begins after strace saw it enter, and ends before strace saw it
leave; so when the record says that one ended before another began, it did.

Files are told apart by a number, not by name: they are renamed and replaced.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TRACED = (
    "openat,open,creat,close,dup,dup2,dup3,fcntl,clone,clone3,fork,vfork,write,pwrite64,writev,pwritev,pwritev2,lseek,"
    "fsync,fdatasync,msync,sync,syncfs,mmap,ftruncate,truncate,fallocate,rename,renameat,renameat2,unlink,unlinkat,"
    "mkdir,mkdirat,rmdir,link,linkat,symlink,copy_file_range,sendfile"
)
_LINE = re.compile(rb"^(\d+) +\d+\.\d+ (.*)$")
_RESUMED = re.compile(rb"^<\.\.\. (\w+) resumed>(.*)$")
_CALL = re.compile(rb"^(\w+)\((.*)\) += (.*)$", re.DOTALL)
_FD = re.compile(rb"^(-?\d+|AT_FDCWD)(?:<([^>]*)>)?")
_STRING = re.compile(rb'"((?:\\x[0-9a-f]{2})*)"')
_UNFINISHED = b" <unfinished ...>"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    ========== ==================================================================================
    issue      write ``id`` of ``data`` to ``file`` at ``at`` begins; it may be on disk from now on
    done       write ``id`` ended; with ``data`` it is durable by itself (O_DSYNC)
    size       ``file`` has ``at`` bytes from now on
    sync       sync ``id`` of ``file`` begins; None: of all files
    synced     it ended
    make       ``path`` is ``file`` from now on; None: a directory
    move       what was ``path`` is ``target``
    remove     ``path`` is gone
    dsync      sync ``id`` of the names in the directory ``path`` begins
    dsynced    it ended
    note       a process took the note ``note``
    ========== ==================================================================================
    """

    kind: str
    id: int = 0
    file: int | None = None
    at: int = 0
    data: bytes = b""
    path: str = ""
    target: str = ""
    note: dict[str, Any] = field(default_factory=dict)


def run(log: str, command: list[str], environment: dict[str, str]) -> None:
    """Run a command and all its children, and write what they do to ``log``."""
    strace = ["strace", "-f", "-ttt", "-y", "-xx", "-s", "100000000", "--seccomp-bpf", "-e", f"trace={TRACED}"]
    done = subprocess.run(
        [*strace, "-o", log, "--", *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr[-4000:]


@dataclass(slots=True)
class _Call:
    pid: int
    name: str
    args: bytes
    result: int | None  # None: it never returned, the process was killed


@dataclass(slots=True, eq=False)
class _Open:
    """An open file description."""

    file: int | None = None  # None: a directory, or the notes
    directory: str | None = None
    is_notes: bool = False
    at: int = 0
    appends: bool = False
    is_durable: bool = False


class Reader:
    """Reads a record: the events on files under ``root``, and the notes that were written to ``notes``."""

    def __init__(
        self, root: str, notes: str, names: dict[str, int | None] | None = None, sizes: dict[int, int] | None = None
    ) -> None:
        self.root = os.path.realpath(root)
        self.notes = os.path.realpath(notes)
        self.names: dict[str, int | None] = dict(names or {})  # path under root: file
        self.sizes = dict(sizes or {})
        self._tables: dict[int, dict[int, _Open]] = {}
        self._maps: dict[int, list[tuple[int, int, int]]] = {}
        self._parents: dict[int, tuple[int, bool]] = {}
        self._ids = 0
        self._entered: dict[int, int] = {}  # id(call): the id of what it began

    def events(self, log: str) -> list[Event]:
        found: list[Event] = []
        calls = list(_calls(log))
        for call, entering in calls:
            if call.name in ("clone", "clone3", "fork", "vfork") and not entering and call.result and call.result > 0:
                self._parents[call.result] = (call.pid, b"CLONE_FILES" in call.args)
        for call, entering in calls:
            found += (self._enter if entering else self._leave)(call)
        return found

    # --- bookkeeping

    def _table(self, pid: int) -> dict[int, _Open]:
        if pid not in self._tables:
            parent, shares = self._parents.get(pid, (0, False))
            table = self._table(parent) if parent else {}
            self._tables[pid] = table if shares else dict(table)
            self._maps[pid] = self._maps[parent] if shares else list(self._maps.get(parent, ()))
        return self._tables[pid]

    def _opened(self, call: _Call) -> _Open | None:
        match = _FD.match(call.args)
        if match is None or match[1] == b"AT_FDCWD":
            return None
        return self._table(call.pid).get(int(match[1]))

    def _inside(self, path: str) -> str | None:
        """Return the path relative to the root, None if it is not under it."""
        if path == self.root:
            return ""
        return path[len(self.root) + 1 :] if path.startswith(self.root + "/") else None

    def _new_id(self) -> int:
        self._ids += 1
        return self._ids

    # --- what a call does when it begins

    def _enter(self, call: _Call) -> Iterator[Event]:
        if call.name in ("write", "pwrite64", "writev", "pwritev", "pwritev2"):
            yield from self._enter_write(call)
        elif call.name in ("fsync", "fdatasync"):
            opened = self._opened(call)
            if opened is not None:
                self._entered[id(call)] = self._new_id()
                if opened.directory is not None:
                    yield Event("dsync", self._ids, path=opened.directory)
                else:
                    yield Event("sync", self._ids, opened.file)
        elif call.name in ("sync", "syncfs"):
            self._entered[id(call)] = self._new_id()
            yield Event("sync", self._ids)
        elif call.name == "msync" and b"MS_SYNC" in call.args:
            start, length = (int(each, 0) for each in call.args.split(b", ")[:2])
            for first, size, file in self._maps.get(call.pid, ()):
                if start <= first and first + min(size, self.sizes.get(file, size)) <= start + length:
                    self._entered[id(call)] = self._new_id()
                    yield Event("sync", self._ids, file)
        elif call.name in ("copy_file_range", "sendfile", "link", "linkat", "symlink"):
            assert self.root.encode().hex() not in call.args.replace(b"\\x", b"").decode(), (
                f"{call.name} is not modelled"
            )

    def _enter_write(self, call: _Call) -> Iterator[Event]:
        opened = self._opened(call)
        if opened is None:
            return
        data = b"".join(_text(each[1]) for each in _STRING.finditer(call.args))
        if call.result is not None:
            data = data[: max(0, call.result)]
        if opened.is_notes:
            for line in data.splitlines():
                yield Event("note", note=json.loads(line))
            return
        if opened.file is None or not data:
            return
        if call.name in ("write", "writev"):
            size = self.sizes.get(opened.file, 0)
            at = size if opened.appends else opened.at
            opened.at = at + len(data)
        else:
            at = int(call.args.rsplit(b", ", 1 if call.name != "pwritev2" else 2)[1], 0)
        self.sizes[opened.file] = max(self.sizes.get(opened.file, 0), at + len(data))
        self._entered[id(call)] = self._new_id()
        yield Event("issue", self._ids, opened.file, at, data)

    # --- what it has done when it ends

    def _leave(self, call: _Call) -> Iterator[Event]:
        begun = self._entered.pop(id(call), None)
        if call.result is None or call.result < 0:
            return  # failed: what it began may or may not have happened
        opened = self._opened(call)
        if begun is not None:
            yield _ended(call, begun, opened)
        elif call.name in ("openat", "open", "creat"):
            yield from self._leave_open(call)
        elif call.name in ("close", "dup", "dup2", "dup3", "fcntl"):
            self._leave_descriptor(call, opened)
        elif call.name == "lseek" and opened is not None:
            opened.at = call.result
        elif call.name == "mmap":
            self._leave_mmap(call)
        elif call.name in ("ftruncate", "fallocate") and opened is not None:
            yield from self._leave_resize(call, opened)
        else:
            yield from self._leave_naming(call)

    def _leave_descriptor(self, call: _Call, opened: _Open | None) -> None:
        assert call.result is not None
        table = self._table(call.pid)
        if call.name == "close":
            match = _FD.match(call.args)
            assert match is not None
            table.pop(int(match[1]), None)
        elif call.name != "fcntl" or b"F_DUPFD" in call.args:
            table.pop(call.result, None)
            if opened is not None:
                table[call.result] = opened

    def _leave_open(self, call: _Call) -> Iterator[Event]:
        assert call.result is not None
        path = self._paths(call)[0]
        flags = call.args
        table = self._table(call.pid)
        table.pop(call.result, None)
        if path == self.notes:
            table[call.result] = _Open(is_notes=True)
            return
        name = self._inside(path)
        if name is None:
            return
        if name == "" or (name in self.names and self.names[name] is None):
            table[call.result] = _Open(directory=name)
            return
        if name not in self.names:
            assert b"O_CREAT" in flags or call.name == "creat", f"{name} was opened and had never been made"
            self.names[name] = file = self._new_id()
            self.sizes[file] = 0
            yield Event("make", file=file, path=name)
        file_ = self.names[name]
        assert file_ is not None
        if b"O_TRUNC" in flags and self.sizes.get(file_):
            self.sizes[file_] = 0
            yield Event("size", file=file_, at=0)
        is_durable = b"O_DSYNC" in flags or b"O_SYNC" in flags
        table[call.result] = _Open(file_, appends=b"O_APPEND" in flags, is_durable=is_durable)

    def _leave_mmap(self, call: _Call) -> None:
        fields = call.args.split(b", ")
        match = _FD.match(fields[4])
        opened = self._table(call.pid).get(int(match[1])) if match else None
        if opened is not None and opened.file is not None and b"MAP_SHARED" in fields[3]:
            assert call.result is not None
            self._maps[call.pid].append((call.result, int(fields[1]), opened.file))

    def _leave_resize(self, call: _Call, opened: _Open) -> Iterator[Event]:
        if opened.file is None:
            return
        fields = [int(each, 0) for each in call.args.split(b", ")[1:]]
        size = self.sizes.get(opened.file, 0)
        if call.name == "fallocate":
            assert fields[0] == 0, "only fallocate that extends is modelled"
            fields = [max(size, fields[1] + fields[2])]
        if fields[0] != size:
            self.sizes[opened.file] = fields[0]
            yield Event("size", file=opened.file, at=fields[0])

    def _leave_naming(self, call: _Call) -> Iterator[Event]:
        if call.name not in (
            "rename",
            "renameat",
            "renameat2",
            "unlink",
            "unlinkat",
            "rmdir",
            "mkdir",
            "mkdirat",
            "truncate",
        ):
            return
        names = [self._inside(path) for path in self._paths(call)]
        if names[0] is None:
            return
        assert call.name != "truncate", "truncate by name is not modelled"
        if call.name.startswith("rename"):
            assert names[1] is not None
            self.names[names[1]] = self.names.pop(names[0])
            yield Event("move", path=names[0], target=names[1])
        elif call.name.startswith("mkdir"):
            self.names[names[0]] = None
            yield Event("make", path=names[0])
        else:
            del self.names[names[0]]
            yield Event("remove", path=names[0])

    def _paths(self, call: _Call) -> list[str]:
        """Return the absolute paths that a call was given."""
        found = []
        base = self.root  # of calls without a descriptor; all that the library does has absolute paths
        for each in call.args.split(b", "):
            descriptor = _FD.match(each)
            text = _STRING.match(each)
            if descriptor is not None and descriptor[2] is not None:
                base = _text(descriptor[2]).decode()
            elif text is not None:
                found.append(os.path.normpath(os.path.join(base, _text(text[1]).decode())))
        return found


def _ended(call: _Call, begun: int, opened: _Open | None) -> Event:
    """Return the event that ends what an earlier one began."""
    if "write" in call.name:
        assert opened is not None
        return Event("done", begun, opened.file, data=b"durable" if opened.is_durable else b"")
    if opened is not None and opened.directory is not None:
        return Event("dsynced", begun, path=opened.directory)
    return Event("synced", begun, opened.file if opened is not None else None)


def _calls(log: str) -> Iterator[tuple[_Call, bool]]:
    """Yield each call twice: when it begins, with True, and when it ends."""
    open_: dict[int, tuple[_Call, bytes]] = {}
    with open(log, "rb") as file:
        lines = file.read().split(b"\n")
    ends: dict[int, bytes] = {}  # line number: the second half of the call that began there
    waiting: dict[int, int] = {}
    parsed = []
    for number, line in enumerate(lines):
        match = _LINE.match(line)
        parsed.append(match)
        if match is None:
            continue
        pid, rest = int(match[1]), match[2]
        if rest.endswith(_UNFINISHED):
            waiting[pid] = number
        elif (resumed := _RESUMED.match(rest)) and pid in waiting:
            ends[waiting.pop(pid)] = resumed[2]
    for number, match in enumerate(parsed):
        if match is None:
            continue
        pid, rest = int(match[1]), match[2]
        if rest.endswith(_UNFINISHED):
            call = _parse(pid, rest[: -len(_UNFINISHED)] + ends.get(number, b") = ?"))
            if call is not None:
                open_[pid] = (call, rest)
                yield call, True
        elif rest.startswith(b"<... "):
            if pid in open_:
                yield open_.pop(pid)[0], False
        elif (call := _parse(pid, rest)) is not None:
            yield call, True
            yield call, False


def _parse(pid: int, text: bytes) -> _Call | None:
    match = _CALL.match(text)
    if match is None:
        return None  # a signal, or the end of a process
    try:
        result: int | None = int(match[3].split(b"<")[0].split()[0], 0)
    except ValueError:
        result = None
    return _Call(pid, match[1].decode(), match[2], result)


def _text(hexadecimal: bytes) -> bytes:
    return bytes.fromhex(hexadecimal.replace(b"\\x", b"").decode())
