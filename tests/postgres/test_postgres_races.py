"""What another transaction changes between the beginning of a statement and the moment at which it comes to the row."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg
import pytest
from processes import DEADLINE, eventually

from lmdbqueue._verbs.lease import undo
from lmdbqueue._verbs.reading import head_of
from lmdbqueue.postgres import _away, _pushing, _removal, _session
from lmdbqueue.postgres._failures import Lost

WAITING = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"


def leased_each(queue, n):
    """Lease items, each by itself; the relays that follow look for no dead owners, so that they lease, too."""
    engine = queue._engine
    engine._hold._deaths_seen = float("inf")
    return [lease[1].token for lease in engine.lease_each(n, 60.0, head_of(queue).sort_out)]


def relayed(queue, tokens):
    return queue._engine.relay_each([(token, None) for token in tokens], 60.0, head_of(queue).sort_out)


def leased(queue, n):
    queue._engine._hold._deaths_seen = float("inf")
    return queue._engine.lease(n, 60.0, head_of(queue).sort_out)


class Amid:
    """A statement that waits for a row, and what another transaction does meanwhile."""

    def __init__(self, postgres, schema):
        self._postgres, self._schema = postgres, schema

    def __call__(self, call, lock, meanwhile=lambda: None):
        """Return what a call returns that waits for rows; ``lock`` locks them, and is committed after ``meanwhile``."""
        results = []
        with psycopg.connect(self._postgres.url()) as other:
            other.execute(lock.format(schema=f'"{self._schema}"'))
            thread = threading.Thread(target=lambda: results.append(call()))
            thread.start()
            eventually(lambda: self._postgres.execute(WAITING, f"%{self._schema}%"))
            meanwhile()
        thread.join(DEADLINE)
        return results[0]


@pytest.fixture
def amid(postgres, schema):
    return Amid(postgres, schema)


LEASED = "SELECT FROM {schema}.items WHERE state = 1 FOR UPDATE"
SESSIONS = "SELECT FROM {schema}.ledger FOR UPDATE"
EXTEND = "UPDATE {schema}.items SET until = until + interval '1 second' WHERE state = 1"


@pytest.mark.parametrize("n", [1, 2])
def test_an_item_that_was_leased_and_given_back_amid_a_relay_is_counted_once(open_postgres, amid, n):
    queue, other = open_postgres(), open_postgres()
    queue.push([*"abcdef"])
    tokens = leased_each(queue, n)
    found = amid(partial(relayed, queue, tokens), LEASED, lambda: undo(other.lease(2)))
    assert [len(acked) for acked, _ in found] == [1] * n
    held = sum(more is not None for _, more in found)
    assert (queue.stats().leased, queue.stats().waiting) == (held, 6 - n - held)
    assert queue.check() == []


@pytest.mark.parametrize("n", [1, 3])
def test_an_item_that_was_leased_and_given_back_amid_a_lease_is_counted_once(open_postgres, amid, postgres, schema, n):
    queue = open_postgres()
    queue.push([*"abcdef"])
    leased(queue, 1)
    there_and_back = f"""
        UPDATE "{schema}".items SET state = 1 WHERE seq = 1; UPDATE "{schema}".items SET state = 0 WHERE seq = 1"""
    items, _ = amid(partial(leased, queue, n), SESSIONS, lambda: postgres.execute(there_and_back))
    assert queue.stats().leased == 1 + len(items)
    assert queue.check() == []


def test_a_relay_leases_no_more_items_than_leases_have_ended(open_postgres, postgres, schema):
    """The others were held by nobody until their time was over."""
    queue, other = open_postgres(), open_postgres()
    queue.push([*"abcdef"])
    tokens = leased_each(queue, 3)
    postgres.execute(f"""UPDATE "{schema}".items SET until = now() WHERE state = 1 AND seq > 0""")
    assert other.count() == 5
    (acked, more), *others = relayed(queue, tokens)
    assert (acked, more[0], others) == ([0], ["b"], [(None, None)] * 2)
    assert queue.stats().leased == 1


def test_a_relay_of_a_session_that_was_shut_out_does_nothing_if_no_item_waits(open_postgres, monkeypatch):
    """Its acks took place, nobody counted them, and they were told to have come too late."""
    queue = open_postgres()
    queue.push([*"ab"])
    tokens = leased_each(queue, 2)
    database, place = queue._engine.database, queue._engine.place
    late, other = database.access.entered(0.0, 5.0), database.access.entered(0.0, 5.0)
    late._open_row(place.id)
    monkeypatch.setattr(_session, "_END", "SELECT %(session)s")  # the server does not hear of the end in time
    assert other.settled(late.id, late.token + 1) is None
    values = {"seqs": [0, 1], "leases": tokens, "insists": False, "claims": place.claims, "lease": 7, "ttl": 60.0}
    with pytest.raises(Lost):
        late.once(_away.RELAY, place.id, values)
    assert queue.stats().leased == 2
    assert queue.check() == []
    for session in (late, other):
        session.close()


CHANGES = {
    "acks of several leases": lambda queue, tokens: queue._engine.ack_each([(token, None) for token in tokens]),
    "relays of several leases": relayed,
    "an ack of several items": lambda queue, tokens: queue._engine.ack(tokens[0], None),
    "nack": lambda queue, tokens: queue._engine.nack(tokens[0], None, 0.0, "", None),
    "unlease": lambda queue, tokens: queue._engine.unlease(tokens[0]),
    "extend": lambda queue, tokens: queue._engine.extend(tokens[0], 60.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_lease_that_is_being_extended_is_not_over(open_postgres, amid, change):
    """A worker's thread extends what its handler has just finished: the item was handled again."""
    queue = open_postgres()
    queue.push([*"abcd"])
    tokens = leased_each(queue, 2) if "leases" in change else [leased(queue, 2)[1].token]
    result = amid(partial(CHANGES[change], queue, tokens), EXTEND)
    if "leases" in change:
        assert [each and (each[0] if "relay" in change else each) for each in result] == [[0], [1]]
    elif "ack" in change:
        assert result == ([0, 1] if change.startswith("an") else ([0, 1], [], []))
    assert queue.stats().leased == (2 if change == "extend" else 0)
    assert queue.check() == []


def test_an_item_that_cannot_be_decoded_is_buried_while_its_lease_is_being_changed(open_postgres, amid):
    queue = open_postgres()
    queue.push([*"ab"])
    engine = queue._engine
    token = leased(queue, 1)[1].token
    amid(lambda: engine._hold.run(_away.bury, token, {0: "why"}), EXTEND)
    assert [letter.reason for letter in queue.dead] == ["why"]
    assert queue.check() == []


def test_an_item_whose_lease_is_being_extended_is_replaced(open_postgres, amid):
    """What should have replaced it was not stored."""
    queue = open_postgres()
    queue.push("old", unique="k")
    lease = queue.lease()
    amid(lambda: queue.push("new", unique="k", replace=True), EXTEND)
    lease.nack()
    assert queue.pop_many(3) == ["new"]
    assert queue.check() == []


def test_an_item_that_comes_back_between_two_statements_is_replaced(open_postgres, monkeypatch):
    """One removes what waits, the other marks what is leased."""
    queue, other = open_postgres(), open_postgres()
    queue.push("old", unique="k")
    lease = other.lease()
    replace, returns = _removal.replaced, [lease.nack]

    def replaced(step, place, keys):
        replace(step, place, [] if returns else keys)  # as if it came back as the item was looked for
        while returns:
            with ThreadPoolExecutor(1) as another:
                another.submit(returns.pop()).result(DEADLINE)

    monkeypatch.setattr(_pushing, "replaced", replaced)
    queue.push("new", unique="k", replace=True)
    assert queue.pop_many(3) == ["new"]
