"""Requests to a model hub: what a repository holds, the bytes of a file, and what errors mean.

`huggingface_hub` provides the addresses, the session with its proxies, certificates and offline
mode, the stored tokens, the metadata of a single file, and the kinds of errors. These of its
functions are deliberately not used:

- ``hf_hub_download`` and ``snapshot_download`` delete a partial file when a download breaks off,
  so the next run would start again from the first byte. They compare sizes, not checksums.
- ``http_get`` could append to a partial file that we keep, but it writes a body that never ends
  until the disk is full, gives up when a hub answers with status 502, 503 or 504, and before
  version 1.33 also when a connection breaks.
- ``http_stream_backoff`` waits as long as a hub's Retry-After says, be it a year.
- ``HfApi.model_info`` reads a listing into memory however long it is. So does
  ``hf_raise_for_status`` with an error, and is given only the beginning of it.

What a hub says is not trusted: answers are bounded, and text from them is made printable and
loses the access token before it gets into a message.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    get_session,
    get_token,
    hf_hub_url,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# The root of all that a request can raise: httpx's in version 1 of huggingface_hub, httpx2's in 2.
from huggingface_hub.errors import HTTPError as RequestError  # type: ignore[attr-defined]
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    hf_raise_for_status,
    validate_repo_id,
)

from sdpy import __version__
from sdpy.errors import HubError, UsageError
from sdpy.files import read_input

MAX_LISTING_BYTES = 16 << 20  # repositories of 50,000 files
MAX_JSON_BYTES = 1 << 20
MAX_ERROR_BYTES = 1 << 14
MAX_QUOTED_CHARACTERS = 200
MAX_WAIT_SECONDS = 60.0
MAX_ANSWER_SECONDS = 120.0
"""For a listing or another answer that is read as a whole."""
SPEED_WINDOW_SECONDS = 30.0
MIN_BYTES_PER_SECOND = 1000

_TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)

_CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class TransientError(HubError):
    """An error that may be gone at the next try, such as a broken connection.

    Attributes:
        retry_after: seconds that the hub asks to wait, None where it does not say.
    """

    retry_after: float | None = None


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub.

    Attributes:
        repository: OWNER/NAME.
        commit: the commit that it belongs to.
        path: in the repository.
        size: bytes; None until `Hub.complete` has asked for it.
        checksum: hex digits: 64 are the SHA-256 of the content, 40 are git's SHA-1 of it; None
            where the hub gives none.
    """

    repository: str
    commit: str
    path: str
    size: int | None
    checksum: str | None


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit.

    Attributes:
        repository: OWNER/NAME.
        commit: its hash; the revision that was asked for where a mirror gives no hash.
        files: by their paths.
    """

    repository: str
    commit: str
    files: dict[str, RemoteFile] = field(default_factory=dict)


def find_endpoint(given: str | None) -> str:
    """The hub's address: the one given, that of HF_ENDPOINT, or the Hugging Face hub.

    Raises:
        UsageError: it is no http address.
    """
    endpoint = (constants.ENDPOINT if given is None else given).rstrip("/")
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        usable = False
    if not usable or not _is_one_word(endpoint):
        origin = "HF_ENDPOINT" if given is None else "--endpoint"
        raise UsageError(
            f"{origin} is '{endpoint}', which is not the address of a hub; write it as https://HOST"
        )
    return endpoint


def find_token(file: Path | None, endpoint: str) -> str | None:
    """The access token to send, if there is one.

    It is read from the file given, else from HF_TOKEN, else from where ``hf auth login`` keeps it.
    The last was made for the usual hub and is not sent to an address given on the command line.

    Raises:
        UsageError: the file cannot be read or holds no token.
    """
    if file is None:
        if endpoint == constants.ENDPOINT:
            return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        token = os.environ.get("HF_TOKEN", "").strip()
        return _check_token(token, "HF_TOKEN") if token else None
    try:
        text = read_input(file, MAX_ERROR_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"cannot read the token in {file}: {reason}") from error
    return _check_token(text.strip(), str(file))


def _check_token(token: str, origin: str) -> str:
    if not token or not _is_one_word(token):
        raise UsageError(f"{origin} holds no access token; it is one word, such as hf_...")
    return token


def _is_one_word(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


class Hub:
    """A model hub.

    Attributes:
        endpoint: its address, without a slash at the end.
        host: the address without its scheme and password, for messages.

    Raises:
        HubError: the environment names a proxy that cannot be used.
    """

    def __init__(self, endpoint: str, token: str | None = None) -> None:
        self.endpoint = endpoint
        self.host = endpoint.partition("://")[2].rpartition("@")[2]
        self._token = token
        try:
            get_session()
        except (ImportError, ValueError) as error:
            raise HubError(
                f"the proxy that the environment names cannot be used ({error}); check "
                "HTTPS_PROXY, HTTP_PROXY and ALL_PROXY"
            ) from error
        self._headers = {"user-agent": f"sdpy/{__version__}"}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"

    def list_files(self, repository: str, revision: str | None = None) -> Listing:
        """What a repository holds.

        Args:
            repository: OWNER/NAME.
            revision: branch, tag or commit; None for the main branch.

        Raises:
            HubError: the hub cannot be reached, or has no such repository or revision.
        """
        revision = constants.DEFAULT_REVISION if revision is None else revision
        url = f"{self.endpoint}/api/models/{repository}/revision/{quote(revision, safe='')}"
        with self._errors(f"revision '{revision}' of {repository}", repository):
            validate_repo_id(repository)
            with self._get(url, params={"blobs": True}) as response:
                found = _read_json(self._watched(response.iter_bytes()), MAX_LISTING_BYTES)
        try:
            return _read_listing(repository, revision, found)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise HubError(f"{self.host} does not answer as a model hub does") from error

    def complete(self, file: RemoteFile) -> RemoteFile:
        """``file`` with its size and checksum, which some mirrors leave out of their listings.

        Raises:
            HubError: the hub does not give the size, or cannot be reached.
        """
        if file.size is not None and file.checksum is not None:
            return file
        with self._errors(file.path, file.repository):
            found = get_hf_file_metadata(
                self._url(file),
                token=False if self._token is None else self._token,
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                headers=dict(self._headers),
                endpoint=self.endpoint,
            )
        size = _size(found.size)
        if size is None:
            raise HubError(f"{self.host} does not give the size of {file.path}; use another hub")
        return replace(file, size=size, checksum=_checksum(found.etag))

    def read_json(self, file: RemoteFile) -> dict[str, Any]:
        """The content of a small JSON file.

        Raises:
            HubError: it cannot be read, or is not a JSON object.
        """
        with self.open(file) as (_, chunks):
            found = _read_json(chunks, MAX_JSON_BYTES)
        if found is None:
            raise HubError(f"{file.path} of {file.repository} at {self.host} is not a JSON object")
        return found

    @contextmanager
    def open(self, file: RemoteFile, start: int = 0) -> Iterator[tuple[int, Iterator[bytes]]]:
        """The bytes of a file, from ``start`` on.

        Gives where the bytes really begin, ``start`` or 0 where the hub cannot give a part of a
        file, and the bytes in pieces.

        Raises:
            TransientError: the connection broke off or timed out, or the hub is busy.
            HubError: the hub does not give the file.
        """
        # A file that is compressed on its way cannot be asked for by ranges of its bytes.
        headers = {"accept-encoding": "identity"}
        if start:
            headers["range"] = f"bytes={start}-"
        with (
            self._errors(file.path, file.repository),
            self._get(self._url(file), headers=headers) as response,
        ):
            begins = start if response.status_code == 206 else 0
            yield begins, self._watched(response.iter_bytes())

    def _watched(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The same pieces of an answer, as long as they come fast enough.

        Raises:
            TransientError: they come so slowly that somebody might wait for ever.
        """
        waited, received, is_slow = 0.0, 0, False
        while True:
            begin = time.monotonic()
            chunk = next(chunks, None)
            waited += time.monotonic() - begin
            if chunk is None:
                return
            received += len(chunk)
            if waited >= SPEED_WINDOW_SECONDS:
                if received < waited * MIN_BYTES_PER_SECOND and is_slow:
                    raise TransientError(
                        f"{self.host} sends less than {MIN_BYTES_PER_SECOND} bytes a second; check "
                        "the network, or name a mirror with --endpoint"
                    )
                is_slow = received < waited * MIN_BYTES_PER_SECOND
                waited, received = 0.0, 0
            yield chunk

    def printable(self, text: object) -> str:
        """What the hub said, fit for a message: one line, bounded, harmless, without the token."""
        shown = " ".join(str(text).split())
        if self._token is not None:
            shown = shown.replace(self._token, "***")
        if len(shown) > MAX_QUOTED_CHARACTERS:
            shown = shown[:MAX_QUOTED_CHARACTERS] + "..."
        return "".join(character if character.isprintable() else "?" for character in shown)

    def _url(self, file: RemoteFile) -> str:
        return hf_hub_url(file.repository, file.path, revision=file.commit, endpoint=self.endpoint)

    @contextmanager
    def _get(
        self, url: str, *, headers: dict[str, str] | None = None, params: Any = None
    ) -> Iterator[Any]:
        """A response (httpx's, or httpx2's) whose body has not been read yet."""
        with get_session().stream(
            "GET",
            url,
            headers={**self._headers, **(headers or {})},
            params=params,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            follow_redirects=True,
        ) as response:
            if response.is_error:
                kept = ("content-type", "retry-after", "x-error-code", "x-error-message")
                hf_raise_for_status(
                    type(response)(
                        response.status_code,
                        headers=[pair for pair in response.headers.items() if pair[0] in kept],
                        content=next(response.iter_bytes(MAX_ERROR_BYTES), b""),
                        request=response.request,
                    )
                )
            yield response

    @contextmanager
    def _errors(self, what: str, repository: str) -> Iterator[None]:
        """Turn what a request raises into one line."""
        try:
            yield
        except OfflineModeIsEnabled as error:
            raise HubError(
                f"cannot download {what}: HF_HUB_OFFLINE is set, which forbids using the network; "
                "unset it to download"
            ) from error
        except HFValidationError as error:
            raise HubError(
                f"{repository} is not the name of a repository; write OWNER/NAME"
            ) from error
        except HfHubHTTPError as error:
            raise self._explain(error, what, repository) from error
        except RequestError as error:
            reason = self.printable(error) or type(error).__name__
            raise TransientError(
                f"the connection to {self.host} failed ({reason}); check the network, or name a "
                "mirror with --endpoint"
            ) from error

    def _explain(self, error: HfHubHTTPError, what: str, repository: str) -> HubError:
        status = error.response.status_code
        if isinstance(error, GatedRepoError):
            return HubError(self._gated(repository))
        if isinstance(error, RevisionNotFoundError):
            return HubError(
                f"{self.host} has no {what}; name a branch, tag or commit of it with --revision"
            )
        if isinstance(error, EntryNotFoundError):
            return HubError(f"{repository} at {self.host} has no file {what}; check its name")
        if status in _TRANSIENT_STATUS:
            transient = TransientError(
                f"{self.host} is busy or out of order (status {status}); try again later, or name "
                "a mirror with --endpoint"
            )
            wait = error.response.headers.get("retry-after", "")
            if wait.isdecimal():
                transient.retry_after = min(float(wait), MAX_WAIT_SECONDS)
            return transient
        if status == 401 and self._token is not None:
            return HubError(
                f"{self.host} does not accept the access token; check HF_TOKEN or the file of "
                "--token-file"
            )
        if isinstance(error, RepositoryNotFoundError) or status == 401:
            return HubError(
                f"{self.host} has no repository {repository}, or it is private: check the name, or "
                "give an access token that may read it (HF_TOKEN, or --token-file FILE)"
            )
        reason = f"status {status}"
        if error.server_message:
            reason += f": {self.printable(error.server_message)}"
        return HubError(f"{self.host} does not give {what} ({reason}); is it a model hub?")

    def _gated(self, repository: str) -> str:
        page = f"{self.endpoint.partition('://')[0]}://{self.host}/{repository}"
        if self._token is None:
            return (
                f"{repository} is gated: log in at {page} and accept its licence, then give an "
                "access token of yours (HF_TOKEN, or --token-file FILE)"
            )
        return (
            f"{repository} is gated, and the access token's owner may not read it yet: accept its "
            f"licence at {page}, and see that the token may read gated repositories"
        )


def _read_json(chunks: Iterator[bytes], limit: int) -> dict[str, Any] | None:
    """A JSON object of at most ``limit`` bytes, or None; likewise if it does not end in time."""
    content = bytearray()
    end = time.monotonic() + MAX_ANSWER_SECONDS
    for chunk in chunks:
        content += chunk
        if len(content) > limit or time.monotonic() > end:
            return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _read_listing(repository: str, revision: str, found: Any) -> Listing:
    if found.get("sha") is not None and not _COMMIT.fullmatch(found["sha"]):
        raise ValueError("not the hash of a commit")
    listing = Listing(repository, found.get("sha") or revision)
    for sibling in found["siblings"]:
        path, lfs = sibling["rfilename"], sibling.get("lfs")
        if not path.isprintable():
            continue  # nothing that is needed has such a name, and no terminal should show it
        checksum = _checksum(lfs["sha256"] if lfs else sibling.get("blobId"))
        size = _size(sibling.get("size"))
        listing.files[path] = RemoteFile(repository, listing.commit, path, size, checksum)
    return listing


def _checksum(found: Any) -> str | None:
    return found if isinstance(found, str) and _CHECKSUM.fullmatch(found) else None


def _size(found: Any) -> int | None:
    return found if type(found) is int and found >= 0 else None
