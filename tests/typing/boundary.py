"""What a type checker must find where verbs, engines and transactions meet. Checked by mypy, never run."""

from typing import assert_type

from lmdbqueue._base.values import Entry, Moment, ReaderStats
from lmdbqueue._lmdb.snapshot import Ref
from lmdbqueue._local.engine import LocalEngine
from lmdbqueue._local.environment import Environment
from lmdbqueue._model import fifo, readers
from lmdbqueue._verbs.engine import Engine
from lmdbqueue.postgres import _dead
from lmdbqueue.postgres._database import Database
from lmdbqueue.postgres._engine import PostgresEngine
from lmdbqueue.postgres._items import Place


def both_keep_items(local: LocalEngine, postgres: PostgresEngine) -> list[Engine]:
    return [local, postgres]


def functions_of_a_transaction(environment: Environment, q: Ref, now: Moment) -> None:
    assert_type(environment.view(q, fifo.first, 3), list[Entry])
    assert_type(environment.glance(q, readers.stats), list[ReaderStats])
    assert_type(environment.update(q, readers.drop, "billing", room=9), bool)
    environment.view(q, fifo.first)  # type: ignore[arg-type]
    environment.view(q, fifo.first, 3, 4, 5)  # type: ignore[arg-type]
    environment.view(q, fifo.first, "3")  # type: ignore[arg-type]
    environment.update(q, readers.seek, "billing", now, 5)  # type: ignore[arg-type]


def functions_of_a_step(database: Database, place: Place) -> None:
    assert_type(database.run(1.0, _dead.requeue, place, {5}), int)
    database.run(1.0, _dead.requeue, place)  # type: ignore[arg-type]
    database.view(1.0, _dead.requeue, {5}, place)  # type: ignore[arg-type]
