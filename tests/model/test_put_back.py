"""Items that were removed and put back are the first again, and every invariant holds on the way."""

import random

import pytest


@pytest.mark.parametrize("seed", range(20))
def test_items_are_put_back_in_any_order_amid_other_verbs(open_queue, seed):
    chance = random.Random(seed)  # noqa: S311
    queue = open_queue(durability="off")
    model: list[int] = []
    taken = []
    number = 0
    for _ in range(60):
        draw = chance.random()
        if draw < 0.4:
            more = list(range(number, number + chance.randrange(1, 4)))
            number += len(more)
            queue.push(more)
            model += more
        elif draw < 0.7:
            entries, items = queue._head.take(chance.randrange(1, 4), 0)
            assert items == model[: len(items)]
            del model[: len(items)]
            if entries:
                taken.append((entries, items))
        elif draw < 0.74:
            queue.flush(force=True)
        elif draw < 0.76:
            queue.clear()
            model = []
        elif taken:
            entries, items = taken.pop(chance.randrange(len(taken)))
            queue._engine.put_back(entries)
            model = sorted(model + items)
        assert queue.check() == []
        assert list(queue) == model
