"""Hubs that answer without end, or so slowly that nobody would live to see it."""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from sdpy.errors import HubError
from sdpy.zoo.hub import client
from sdpy.zoo.hub.client import Hub, RemoteFile, TransientError

FILE = RemoteFile("owner/name", "main", "x.safetensors", 10**9, None)


class Clock:
    """A clock that a hub moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(client, "time", made)
    return made


class SlowHub(Hub):
    def __init__(self, chunks: Iterator[bytes], clock: Clock, seconds: float) -> None:
        super().__init__("https://hub.example")
        self.chunks, self.clock, self.seconds = chunks, clock, seconds

    def _slowly(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            self.clock.now += self.seconds
            yield chunk

    @contextmanager
    def _get(self, url: str, **_: Any) -> Iterator[Any]:
        yield SimpleNamespace(status_code=200, iter_bytes=self._slowly)


def received(hub: Hub) -> int:
    with hub.open(FILE) as (_, chunks):
        return sum(map(len, chunks))


def test_a_drip_ends_with_an_error_that_is_tried_again(clock: Clock) -> None:
    with pytest.raises(TransientError, match="less than 1000 bytes a second"):
        received(SlowHub(itertools.repeat(b"x"), clock, 5))
    assert clock.now < 100


def test_slow_is_fast_enough(clock: Clock) -> None:
    assert received(SlowHub(itertools.repeat(bytes(10_000), 100), clock, 5)) == 1_000_000
    assert received(SlowHub(iter([b"x"] * 3), clock, 5)) == 3  # a small file, all of it


def test_a_listing_without_end(clock: Clock) -> None:
    for chunk, seconds in ((b" " * 2**20, 0.0), (b" " * 30_000, 5.0), (b" ", 5.0)):
        with pytest.raises(HubError):
            SlowHub(itertools.repeat(chunk), clock, seconds).list_files("owner/name")


def test_a_listing_that_is_in_time(clock: Clock) -> None:
    answer = json.dumps({"sha": None, "siblings": [{"rfilename": "x"}]}).encode()
    found = SlowHub(iter([answer[:9], answer[9:]]), clock, 20).list_files("owner/name")
    assert list(found.files) == ["x"]
