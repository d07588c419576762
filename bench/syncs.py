"""Count the syncs of a durable push and pop, with strace: ``python -m bench.syncs``.

Owns: the proof that an adapter which calls itself durable makes the disk wait. What counts is ``fsync``,
``fdatasync``, ``msync(MS_SYNC)`` and each write to a file that was opened with ``O_DSYNC`` or ``O_SYNC``,
which is how LMDB writes its meta page. The difference of a long and a short run leaves opening and
closing out.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile

from bench.items import make_items
from bench.peers import Peer, load_all, load_one

_SHORT, _LONG = 10, 110
_CALLS = "trace=openat,fsync,fdatasync,msync,write,pwrite64,writev,pwritev"
_OPENED = re.compile(r"openat\(.*O_D?SYNC.*= (\d+)")
_WRITTEN = re.compile(r"(?:write|pwrite64|writev|pwritev)\((\d+),")
_SYNCED = re.compile(r"(?:fsync|fdatasync)\(|msync\(.*MS_SYNC")


def main() -> int:
    """Print a line for each adapter."""
    parser = argparse.ArgumentParser(prog="python -m bench.syncs")
    parser.add_argument(
        "run", nargs="*", metavar="ADDRESS MODE DIRECTORY PUSHES POPS", help="what the traced process does"
    )
    run = parser.parse_args().run
    if run:
        address, mode, directory, pushes, pops = run
        _push_and_pop(load_one(address), mode, directory, int(pushes), int(pops))
        return 0
    peers, missing = load_all()
    for sentence in missing:
        print(sentence)
    for peer in peers:
        for mode in ("durable", "off"):
            if peer.can_be(mode):
                pushes, pops = _syncs_of(peer, mode)
                print(f"{peer.name:28}{mode:10}{pushes:6.2f} a push{pops:8.2f} a pop")
    return 0


def _syncs_of(peer: type[Peer], mode: str) -> tuple[float, float]:
    """Return how many syncs a push makes, and a pop."""
    pushed, pushed_more = _count(peer, mode, _SHORT, 0), _count(peer, mode, _LONG, 0)
    popped, popped_more = _count(peer, mode, _LONG, _SHORT), _count(peer, mode, _LONG, _LONG)
    return (pushed_more - pushed) / (_LONG - _SHORT), (popped_more - popped) / (_LONG - _SHORT)


def _count(peer: type[Peer], mode: str, pushes: int, pops: int) -> int:
    with tempfile.TemporaryDirectory() as directory:
        trace = os.path.join(directory, "trace")
        queue = os.path.join(directory, "queue")
        os.mkdir(queue)
        traced = [sys.executable, "-m", "bench.syncs", peer.address(), mode, queue, str(pushes), str(pops)]
        subprocess.run(["strace", "-f", "-o", trace, "-e", _CALLS, *traced], check=True, stderr=subprocess.DEVNULL)
        with open(trace, encoding="utf-8", errors="replace") as lines:
            return _syncs_in(lines.readlines())


def _syncs_in(lines: list[str]) -> int:
    synchronous: set[str] = set()
    syncs = 0
    for line in lines:
        if opened := _OPENED.search(line):
            synchronous.add(opened[1])
        elif written := _WRITTEN.search(line):
            syncs += written[1] in synchronous
        elif _SYNCED.search(line):
            syncs += 1
    return syncs


def _push_and_pop(peer: type[Peer], mode: str, directory: str, pushes: int, pops: int) -> None:
    queue = peer.opened(directory, mode)
    for item in make_items(pushes):
        queue.push(item)
    for _ in range(pops):
        queue.pop()
    queue.close()


if __name__ == "__main__":
    sys.exit(main())
