"""What goes wrong with a hub, in one line each."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants

from sdpy.errors import HubError, UsageError
from sdpy.zoo.hub.client import Hub, RemoteFile, TransientError, find_endpoint, find_token
from support.hub_contents import SD15, pipeline
from support.loopback import Endless, LoopbackHub, Silence, Status, commit_of, serve

CONFIG = "vae/config.json"


def read(hub: Hub, repository: str = SD15, path: str = CONFIG) -> bytes:
    file = RemoteFile(repository, "main", path, None, None)
    with hub.open(file) as (_, chunks):
        return b"".join(chunks)


def test_nobody_answers(hub: LoopbackHub) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(HubError, match=rf"connection to 127.0.0.1:{port} failed .*--endpoint"):
            Hub(f"http://127.0.0.1:{port}").list_files(SD15)


def test_it_answers_too_late(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    hub.faults[CONFIG] = [Silence()]
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)

    with pytest.raises(TransientError, match=r"failed \(.*timed out"):
        read(Hub(hub.address))


def test_offline_is_forbidden(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set.*unset it"):
        Hub(hub.address).list_files(SD15)
    assert hub.requests == []


@pytest.mark.parametrize("token", [None, "hf_good"])
def test_no_such_repository(hub: LoopbackHub, token: str | None) -> None:
    with pytest.raises(HubError, match=r"no repository owner/nothing, or it is private"):
        Hub(hub.address, token).list_files("owner/nothing")


def test_names_that_no_hub_takes() -> None:
    with pytest.raises(HubError, match="owner/a--b is not the name of a repository"):
        Hub("http://127.0.0.1:9").list_files("owner/a--b")


def test_no_such_file(hub: LoopbackHub) -> None:
    hub.repositories[SD15] = pipeline("sd15")

    with pytest.raises(HubError, match=rf"{SD15} at 127.0.0.1:\d+ has no file no/such.json"):
        read(Hub(hub.address), path="no/such.json")


def test_gated_without_and_with_a_token(hub: LoopbackHub) -> None:
    hub.repositories["owner/gated"] = {CONFIG: b"{}"}
    hub.gated.add("owner/gated")
    hub.token = "hf_good"
    page = f"{hub.address}/owner/gated"

    with pytest.raises(HubError, match=rf"is gated: log in at {page} and accept its licence"):
        read(Hub(hub.address), "owner/gated")
    with pytest.raises(HubError, match=rf"owner may not read it yet: accept its licence at {page}"):
        read(Hub(hub.address, "hf_other"), "owner/gated")
    assert read(Hub(hub.address, "hf_good"), "owner/gated") == b"{}"


def test_a_token_that_is_not_accepted(hub: LoopbackHub) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    hub.token = "hf_good"

    with pytest.raises(HubError, match="does not accept the access token"):
        Hub(hub.address, "hf_stale").list_files(SD15)


@pytest.mark.parametrize(("status", "transient"), [(503, True), (429, True), (403, False)])
def test_other_answers(hub: LoopbackHub, status: int, transient: bool) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    hub.faults[CONFIG] = [Status(status, (("Retry-After", "7"), ("X-Error-Message", "Not today")))]

    with pytest.raises(HubError, match=f"status {status}") as caught:
        read(Hub(hub.address))

    assert isinstance(caught.value, TransientError) == transient
    if isinstance(caught.value, TransientError):
        assert caught.value.retry_after == 7.0
    else:
        assert "Not today" in str(caught.value)


def test_what_is_no_hub_at_all() -> None:
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\nContent-Type: text/html\r\n\r\n<html></html>"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(page)

        threading.Thread(target=answer, daemon=True).start()
        port = server.getsockname()[1]
        with pytest.raises(HubError, match=f"127.0.0.1:{port} does not answer as a model hub does"):
            Hub(f"http://127.0.0.1:{port}").list_files(SD15)


def test_every_message_is_one_line_without_the_token(hub: LoopbackHub) -> None:
    hub.token = "hf_good"
    hub.repositories[SD15] = pipeline("sd15")

    with pytest.raises(HubError) as caught:
        Hub(hub.address, "hf_secret").list_files(SD15)

    assert "\n" not in str(caught.value)
    assert "hf_secret" not in str(caught.value)


def test_a_listing_that_never_ends(hub: LoopbackHub) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    hub.faults[""] = [Endless()]

    with pytest.raises(HubError, match="does not answer as a model hub does"):
        Hub(hub.address).list_files(SD15)


def test_json_that_never_ends(hub: LoopbackHub) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    hub.faults[CONFIG] = [Endless()]

    with pytest.raises(HubError, match="is not a JSON object"):
        Hub(hub.address).read_json(RemoteFile(SD15, "main", CONFIG, None, None))


@pytest.mark.parametrize(("path", "status"), [("", 500), (CONFIG, 418)])
def test_errors_that_never_end(hub: LoopbackHub, path: str, status: int) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    hub.faults[path] = [Endless(status)]

    with pytest.raises(HubError, match=f"status {status}"):
        if path:
            read(Hub(hub.address))
        else:
            Hub(hub.address).list_files(SD15)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b"\xff", b""])
def test_json_that_is_no_object(hub: LoopbackHub, content: bytes) -> None:
    hub.repositories[SD15] = {CONFIG: content}

    with pytest.raises(HubError, match="vae/config.json of .* is not a JSON object"):
        Hub(hub.address).read_json(RemoteFile(SD15, "main", CONFIG, None, None))


def test_what_a_hub_says_is_printable_short_and_without_the_token(hub: LoopbackHub) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    said = "no\n\x1b[31m\u202ered\x07, hf_secret" + "!" * 1000
    hub.faults[CONFIG] = [Status(418, body=json.dumps({"error": said}).encode())]

    with pytest.raises(HubError, match=r"no \?\[31m\?red\?, \*\*\*!+\.\.\.\)") as caught:
        read(Hub(hub.address, "hf_secret"))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "listing",
    [
        {"sha": "../../elsewhere"},
        {"sha": 7},
        {"siblings": None},
        {"siblings": [7]},
        {"siblings": [{"rfilename": None}]},
        {"siblings": [{"rfilename": "a", "lfs": "large"}]},
    ],
)
def test_listings_that_are_none(hub: LoopbackHub, listing: dict[str, object]) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    hub.listing = listing

    with pytest.raises(HubError, match="does not answer as a model hub does"):
        Hub(hub.address).list_files(SD15)


@pytest.mark.parametrize("size", [-1, 1.5, "12", True, None])
def test_sizes_and_checksums_that_are_none_are_asked_for(hub: LoopbackHub, size: object) -> None:
    files = hub.repositories[SD15] = {CONFIG: b"{}"}
    sibling = {"rfilename": CONFIG, "size": size, "blobId": "../../" + "0" * 34}
    hub.listing = {"siblings": [sibling, {"rfilename": "\x1b[31m.safetensors"}]}

    listing = Hub(hub.address).list_files(SD15)

    assert listing.files == {CONFIG: RemoteFile(SD15, commit_of(files), CONFIG, None, None)}
    completed = Hub(hub.address).complete(listing.files[CONFIG])
    assert (completed.size, len(completed.checksum or "")) == (2, 40)


def test_the_wait_that_a_hub_asks_for_is_bounded(hub: LoopbackHub) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    hub.faults[CONFIG] = [Status(429, (("Retry-After", "9" * 20),))]

    with pytest.raises(TransientError) as caught:
        read(Hub(hub.address))
    assert caught.value.retry_after == 60.0


def test_a_password_in_the_address_is_not_shown(hub: LoopbackHub) -> None:
    address = hub.address.replace("://", "://me:secret@")
    hub.repositories["owner/gated"] = {CONFIG: b"{}"}
    hub.gated.add("owner/gated")

    for repository in ("owner/nothing", "owner/gated"):
        with pytest.raises(
            HubError, match=f"owner/.*{hub.address[7:]}|{hub.address[7:]}.*owner/"
        ) as caught:
            read(Hub(address), repository)
        assert "secret" not in str(caught.value)


def test_the_token_stays_with_the_hub(hub: LoopbackHub) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    hub.token = "hf_good"
    with serve(LoopbackHub({f"mirrored/{SD15}": {}})) as elsewhere:
        hub.cdn = elsewhere.address
        with pytest.raises(HubError):
            read(Hub(hub.address, "hf_good"))

        assert [request.headers["Authorization"] for request in hub.requests] == ["Bearer hf_good"]
        assert [request.headers["Authorization"] for request in elsewhere.requests] == [None]


def test_tokens_come_from_the_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = "https://mirror.example"
    file = tmp_path / "token"
    file.write_text("hf_file\n")
    assert find_token(None, mirror) is None

    monkeypatch.setenv("HF_TOKEN", " hf_environment\n")
    assert find_token(None, mirror) == "hf_environment"
    assert find_token(None, constants.ENDPOINT) == "hf_environment"
    assert find_token(file, mirror) == "hf_file"


def test_a_stored_login_is_for_the_usual_hub_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tmp_path / "stored"
    stored.write_text("hf_login")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(stored))

    assert find_token(None, constants.ENDPOINT) == "hf_login"
    assert find_token(None, "https://mirror.example") is None


@pytest.mark.parametrize("content", ["", "\n", "two words", "a\nb", "hf_ü"])
def test_files_without_a_token(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content, encoding="utf-8")

    with pytest.raises(UsageError, match="holds no access token") as caught:
        find_token(file, "https://mirror.example")
    assert not content.strip() or content.strip() not in str(caught.value)
    with pytest.raises(UsageError, match="No such file"):
        find_token(tmp_path / "nothing", "https://mirror.example")


@pytest.mark.parametrize("address", ["", "mirror.example", "ftp://x", "https://", "http://a b"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(UsageError, match=r"--endpoint is .*https://HOST"):
        find_endpoint(address)


def test_a_slash_at_the_end_does_not_count() -> None:
    assert find_endpoint("https://mirror.example/hub/") == "https://mirror.example/hub"
    assert find_endpoint(None) == constants.ENDPOINT
