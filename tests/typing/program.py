"""What a user writes, without an annotation that only a type checker wants. Checked by mypy and pyright, never run."""

# pyright: strict, reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

import asyncio

from lmdbqueue import Job, PersistentQueue
from lmdbqueue.aio import AsyncPersistentQueue

queue = PersistentQueue("spool")
number = queue.push({"id": 7})
batch = queue.peek_many(100)
queue.delete(len(batch))
with queue.lease(10, ttl=60) as lease:
    for item in lease:
        item["id"].upper()
queue.put("x")
item = queue.get(timeout=1)


def handle(item: dict[str, int], job: Job) -> None:
    item["id"] += job.attempts


queue.work(handle, stop=lambda: True)
billing = queue.reader("billing")
for each in billing.pop(3):
    each.anything()
with queue.transaction():
    queue.state["total"] = queue.state.get("total", 0) + 1


async def main() -> None:
    async with AsyncPersistentQueue("spool") as later:
        await later.push_many(range(3))
        for number in await later.pop_many(3):
            number.anything()
        await later.transact(lambda q: q.push(5))


asyncio.run(main())
