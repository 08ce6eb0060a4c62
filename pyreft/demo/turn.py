"""A lock that is given in the order in which it was asked for."""

from __future__ import annotations

from threading import Condition


class Turn:
    """Those who wait have their turn before one who had it asks again, unlike with a `Lock`."""

    def __init__(self) -> None:
        self._changed, self._next, self._now = Condition(), 0, 0

    def acquire(self) -> None:
        """Wait for the turn."""
        with self._changed:
            mine = self._next
            self._next += 1
            self._changed.wait_for(lambda: self._now == mine)

    def release(self) -> None:
        """Give the turn to the next."""
        with self._changed:
            self._now += 1
            self._changed.notify_all()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
