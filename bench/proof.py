"""Prove that an adapter is a queue before it is measured.

Law: each verb that it has gives the right items in the right order, also after it was closed and opened
again, for as many modes as it stands in.
"""

from bench.items import Item, make_items
from bench.peers import Peer

_ITEMS = 30


def prove(peer: type[Peer], mode: str, directory: str) -> None:
    """Push, reopen, and take everything out again. Raises ``ValueError`` on the first wrong answer."""
    items = make_items(_ITEMS)
    half = _ITEMS // 2
    queue = peer.opened(directory, mode)
    for item in items[:half]:
        queue.push(item)
    if peer.has("push_many"):
        queue.push_many(items[half:])
    else:
        for item in items[half:]:
            queue.push(item)
    queue.close()
    queue = peer.opened(directory, mode)
    try:
        _expect("peek", [queue.peek()] if peer.has("peek") else items[:1], items[:1])
        _expect("peek_many", queue.peek_many(5) if peer.has("peek_many") else items[:5], items[:5])
        _expect("pop", _empty(queue, peer, items), items)
        if peer.has("wait"):
            _expect("wait on nothing", queue.wait(0.01), None)
    finally:
        queue.close()


def _empty(queue: Peer, peer: type[Peer], items: list[Item]) -> list[Item]:
    gone: list[Item] = []
    if peer.has("delete_many"):
        queue.delete_many(5)
        gone += items[:5]
    if peer.has("pop_many"):
        gone += queue.pop_many(5)
    while len(gone) < len(items):
        gone.append(queue.pop())
    return gone


def _expect(verb: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise ValueError(f"{verb} returned {found!r}, and {wanted!r} was pushed")
