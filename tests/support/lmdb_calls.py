"""Counts what a call asks of LMDB: what it costs, whatever the machine does meanwhile.

Owns: a transaction that counts. Each record that is read, written or deleted counts, each step of a cursor, and each
position that it is given.
"""

from collections.abc import Callable, Iterator
from typing import Any, Self


class LmdbCalls:
    """Counts what the functions of transactions of one queue ask of LMDB, from now on."""

    def __init__(self, queue: Any) -> None:
        self.count = 0
        environment = queue._engine.environment
        for verb in ("view", "glance", "update"):
            setattr(environment, verb, self._counted(getattr(environment, verb)))

    def of(self, fn: Callable[[], object]) -> int:
        """Return how many calls ``fn`` makes."""
        self.count = 0
        fn()
        return self.count

    def _counted(self, verb: Callable[..., Any]) -> Callable[..., Any]:
        def counted(ref: Any, fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
            def run(txn: Any, tables: Any, *given: Any) -> Any:
                return fn(_Txn(txn, self), tables, *given)

            return verb(ref, run, *args, **options)

        return counted

    def step(self) -> None:
        """Count one."""
        self.count += 1


class _Counting:
    def __init__(self, real: Any, calls: LmdbCalls) -> None:
        self._real = real
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)

        def call(*args: Any, **options: Any) -> Any:
            self._calls.step()
            result = found(*args, **options)
            return self._steps(result) if name in ("iternext", "iterprev") else result

        return call

    def _steps(self, results: Iterator[Any]) -> Iterator[Any]:
        for each in results:
            self._calls.step()
            yield each


class _Txn(_Counting):
    def cursor(self, *args: Any) -> "_Cursor":
        return _Cursor(self._real.cursor(*args), self._calls)


class _Cursor(_Counting):
    def __enter__(self) -> Self:
        self._real.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        self._real.__exit__(*args)

    def putmulti(self, records: Any, **options: Any) -> Any:
        return self._real.putmulti(self._steps(iter(records)), **options)
