"""A clock for engines, which stands still until it is told to go on."""

from typing import Any

from lmdbqueue._base.values import Moment

SECOND = 10**9


class Clock:
    """Both clocks of the system; ``mono`` and ``wall`` in ns."""

    def __init__(self, mono: int = 1_000 * SECOND, wall: int = 1_700_000_000 * SECOND) -> None:
        self.mono = mono
        self.wall = wall

    def __call__(self) -> Moment:
        return Moment(self.mono, self.wall)

    def go_on(self, seconds: float) -> None:
        """Let seconds pass."""
        self.mono += int(seconds * SECOND)
        self.wall += int(seconds * SECOND)

    def step(self, seconds: float) -> None:
        """Set the wall clock forward, or back."""
        self.wall += int(seconds * SECOND)

    def copy(self) -> "Clock":
        """Return another clock that shows the same time."""
        return Clock(self.mono, self.wall)

    def given_to(self, queue: Any) -> Any:
        """Let a queue object ask this clock from now on."""
        queue._engine.clock = self
        return queue
