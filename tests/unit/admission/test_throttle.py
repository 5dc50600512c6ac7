"""A client refuses calls that the server would shed, and notices its recovery soon."""

from __future__ import annotations

import random

import pytest

from deadlinemesh.admission import Throttle
from deadlinemesh.admission.throttle import K


class Server:
    """A server of `capacity` calls a second with bursts of 16, and a client of `rate` calls."""

    def __init__(self, capacity: float, rate: float) -> None:
        self.throttle = Throttle(0.0, random.Random(1).random)
        self.capacity, self.rate = capacity, rate
        self.now = 0.0
        self._room = 0.0

    def run(self, seconds: float) -> tuple[float, float]:
        """Returns the calls a second that were sent, and that were accepted."""
        sent = accepted = 0
        for _ in range(int(seconds * self.rate)):
            self.now += 1 / self.rate
            self._room = min(16.0, self._room + self.capacity / self.rate)
            if self.throttle.lets_through(self.now):
                sent += 1
                if self._room >= 1.0:
                    self._room -= 1.0
                    accepted += 1
                    self.throttle.accepted(self.now)
                else:
                    self.throttle.shed(self.now)
        return sent / seconds, accepted / seconds


def test_throttle_holds_nothing_back_without_refusals() -> None:
    assert Server(capacity=200, rate=100).run(10.0) == (100, 100)


@pytest.mark.parametrize("overload", [2.0, 5.0, 20.0])
def test_overloaded_server_is_sent_little_more_than_it_accepts(overload: float) -> None:
    server = Server(capacity=200, rate=200 * overload)
    server.run(10.0)
    sent, accepted = server.run(10.0)
    assert sent == pytest.approx(200 * K, rel=0.05)
    assert accepted == pytest.approx(200, rel=0.02)


def test_recovered_server_is_sent_all_calls_again() -> None:
    server = Server(capacity=20, rate=400)
    server.run(10.0)
    server.capacity = 400
    server.run(20.0)
    assert server.run(5.0)[0] == pytest.approx(400, rel=0.01)


def test_refusing_server_is_still_probed() -> None:
    server = Server(capacity=0, rate=100)
    server.run(10.0)
    assert 0 < server.run(10.0)[0] < 2


def test_open_calls_do_not_count() -> None:
    throttle = Throttle(0.0, lambda: 0.0)
    assert all(throttle.lets_through(0.0) for _ in range(100))
    throttle.shed(0.0)
    assert not throttle.lets_through(0.0)


def test_calm_returns_once_refusals_fade() -> None:
    throttle = Throttle(0.0)
    throttle.shed(0.0)
    assert not throttle.calm(1.0)
    assert throttle.calm(30.0)
