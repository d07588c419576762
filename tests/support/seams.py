"""Where the mutants of recovery cut in: named once, so that a move of the code cannot make a mutant silent.

Owns: the seams, each a place ``module:name`` in the library that is looked up when it is replaced, and must be there.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lmdbqueue._base import format as _format
from lmdbqueue._lmdb import meta_page

SEAMS = {
    "content": "_model.last_transaction:check_content",
    "counters": "_lmdb.difference:_Both._check_count",
    "doubt": "_host.session:Session.set_in_doubt",
    "doubt on the disk": "_host.session:Session.save",
    "expected bounds": "_model.last_transaction:expected",
    "free list": "_lmdb.difference:_Used.settle",
    "free pages": "_lmdb.difference:_Used._check_free",
    "gaps": "_model.last_transaction:check_bounds",
    "head and tail": "_model.last_transaction:check_order",
    "number": "_model.last_transaction:check_number",
    "number advances": "_local.recovery:_advance",
    "number of what counts again": "_lmdb.meta_page:undo",
    "salt": "_base.format:is_intact",
    "weight": "_model.last_transaction:check_weight",
    "weight of a record": "_base.format:weigh_in",
    "weight of a sealed record": "_base.format:weigh_sealed",
    "weight of a sealed record that changes": "_model.weighed_records:weigh_sealed",
    "lease of one, in one frame": "_model.leases:lease_if_plain",
    "ack of one, in one frame": "_model.leases:_ack_whole",
    "pin": "_lmdb.checkpoint_pin:Pin.move",
    "slot of a checkpoint": "_local.checkpoints:Checkpoints._bring_down",
    "pin of who commits": "_local.checkpoints:Checkpoints.pin",
    "after a commit": "_local.checkpoints:Checkpoints.committed",
    "meta page of the newest": "_lmdb.durability:Durable._is_newest",
    "slot on the disk": "_lmdb.checkpoint_slots:sync_file",
    "lanes": "_lmdb.checkpoint_slots:_lanes",
    "snapshot of a checkpoint": "_lmdb.durability:Durable.newest_meta",
    "numbers leap": "_local.recovery:_make_count",
    "whole file": "_local.recovery:_prove_all",
    **{
        f"away: {name}": f"_model.weighed_records:{name}"
        for name in ("put_away", "pop_away", "add_away", "restore_away", "put_index", "delete_index")
    },
}


def of(seam: str) -> tuple[Any, str]:
    """Return where a seam is: a module or a class, and the name in it."""
    module, _, path = SEAMS[seam].partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(f"lmdbqueue.{module}")
    for each in owners:
        owner = getattr(owner, each)
    assert callable(getattr(owner, name)), seam
    return owner, name


@contextmanager
def replaced(seam: str, make: Callable[[Any], Any]) -> Iterator[list[int]]:
    """Let ``make(function)`` take the place of a function; yields a list that grows with each call."""
    owner, name = of(seam)
    before = owner.__dict__[name]
    calls: list[int] = []
    function = make(before)

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return function(*args, **options)

    setattr(owner, name, counted)
    try:
        yield calls
    finally:
        setattr(owner, name, before)


def nothing(_before: Any) -> Any:
    return lambda *_args, **_options: None


def _unweighed(before: Any) -> Any:
    def function(txn: Any, queue: Any, *args: Any) -> Any:
        weight = queue.generation.weight
        try:
            return before(txn, queue, *args)
        finally:
            queue.generation.weight = weight

    return function


def _not_advanced(_before: Any) -> Any:
    return lambda path: meta_page.read(path)[0]


def _earlier(before: Any) -> Any:
    return lambda path, newest, older, number: before(path, newest, older, number - 2)


def _newest_first(before: Any) -> Any:
    """Read all of the newest snapshot first, whatever its changes say."""
    return lambda path, number, options, session, _likeliest, progress: before(
        path, number, options, session, meta_page.read(path)[0], progress
    )


def _without_salt(before: Any) -> Any:
    return lambda key, value, salt=0: True if salt else before(key, value)


def _outer_seal_only(_before: Any) -> Any:
    return _format.weigh_item


NOT_BY_CHANGES = "a copy is not judged by its changes"
OUTER_SEAL = "a sealed record weighs its outer seal only"
_OUTER_SEAL_ONLY: dict[str, Callable[[Any], Any]] = {
    "weight of a sealed record": _outer_seal_only,
    "weight of a sealed record that changes": _outer_seal_only,
    "lease of one, in one frame": nothing,  # each has the weight in its own lines; without them, others do the same
    "ack of one, in one frame": nothing,
}

MUTANTS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "content weight left out": {"content": nothing},
    "seals and content weight left out": {"content": nothing, "salt": _without_salt},
    "weight of records left out": {"weight": nothing},
    "away left out of the weight": {
        "weight of a record": lambda before: lambda is_away, *record: 0 if is_away else before(is_away, *record),
        **{seam: _unweighed for seam in SEAMS if seam.startswith("away: ")},
    },
    OUTER_SEAL: _OUTER_SEAL_ONLY,
    "number of the transaction not compared": {"number": nothing},
    "number not advanced": {"number advances": _not_advanced, "number of what counts again": _earlier},
    "free list arithmetic left out": {"free list": nothing, "free pages": nothing},
    "counters left out": {"counters": nothing},
    "head, tail and gaps left out": {"head and tail": nothing, "gaps": nothing},
    NOT_BY_CHANGES: {"whole file": _newest_first},
}


def _pinned_anew(before: Any) -> Any:
    """Move the pin on to what was just committed, which no checkpoint covers."""

    def committed(each: Any, granted: int) -> None:
        before(each, granted)
        each._generation.pin.move(each._generation.newest_meta()[0])

    return committed


def _pinned_before(before: Any) -> Any:
    def _bring_down(each: Any, checkpoint: Any) -> None:
        each._pin(checkpoint.transaction)
        before(each, checkpoint)

    return _bring_down


def _flushed_before(before: Any) -> Any:
    def newest_meta(each: Any) -> Any:
        each.flush_to_disk()
        return before(each)

    return newest_meta


def _unflushed(_before: Any) -> Any:
    return lambda each, checkpoint: each._slots.raise_to(checkpoint, each._tell)


def _without_leap(_before: Any) -> Any:
    def make_count(path: str, counts: Any) -> Any:
        newest, older = meta_page.read(path)
        for slot in (newest, older):
            if slot.body != counts.body:
                number = counts.transaction - (counts.transaction % 2 != (slot.offset > 0))
                meta_page.write(path, meta_page.with_body(slot, counts.whole_body, number))
        return meta_page.read(path)[0]

    return make_count


OF_CHECKPOINTS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "no pin": {"pin": nothing},
    "the pin is later than the checkpoint": {"after a commit": _pinned_anew},
    "the pin is moved before the checkpoint is on the disk": {"slot of a checkpoint": _pinned_before},
    "somebody commits before there is a pin": {"pin of who commits": nothing},
    "recovery looks at the first lane only": {"lanes": lambda _before: lambda path: [path]},
    "the meta page is read without a look whether it is the newest": {
        "meta page of the newest": lambda _before: lambda _each, _number: True
    },
    "the flush comes before the copy of the meta page": {
        "snapshot of a checkpoint": _flushed_before,
        "slot of a checkpoint": _unflushed,
    },
    "no fsync of the slot": {"slot on the disk": nothing},
    "numbers go on after a recovery": {"numbers leap": _without_leap},
    "content weight left out": {"content": nothing},
    "weight of records left out": {"weight": nothing},
    OUTER_SEAL: _OUTER_SEAL_ONLY,
    NOT_BY_CHANGES: {"whole file": _newest_first},
}


@contextmanager
def mutated(name: str, *, of_checkpoints: bool = False) -> Iterator[dict[str, list[int]]]:
    """Plant a fault; yields how often each of its seams was passed."""
    with ExitStack() as stack:
        yield {
            seam: stack.enter_context(replaced(seam, make))
            for seam, make in {**OF_CHECKPOINTS, **MUTANTS, **(OF_CHECKPOINTS if of_checkpoints else {})}[name].items()
        }
