"""A hub on loopback, and a wall around it: no test here may reach another machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from sdpy.zoo.hub import fetch
from support.loopback import LoopbackHub, serve

# A port of this machine where nobody answers.
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="package")
def _fresh_session() -> Iterator[None]:
    """No request goes through a session that knows of a proxy; to make one takes long."""
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.fixture(autouse=True)
def _alone(_fresh_session: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network but loopback, no proxy, no token and no setting of whoever runs the tests."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("HF_", "HUGGING")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        NOBODY + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET"):
        monkeypatch.setattr(constants, name, True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 30)
    monkeypatch.setattr(socket, "getaddrinfo", _only_loopback(socket.getaddrinfo))
    monkeypatch.setattr(fetch, "FIRST_WAIT", 0.001)


def _only_loopback(look_up: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(host: str, *arguments: Any, **options: Any) -> Any:
        assert host in ("127.0.0.1", b"127.0.0.1"), f"a test asked for {host}"
        return look_up(host, *arguments, **options)

    return guarded


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """An empty hub."""
    with serve(LoopbackHub()) as running:
        yield running
