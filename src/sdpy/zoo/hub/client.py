"""Talking to a model hub: what a repository holds, the bytes of a file, and what errors mean.

`huggingface_hub` gives the addresses, the requests' session (with its proxies and certificates)
and the kinds of errors. Its own ``hf_hub_download`` is not used: since version 2 it throws away
what it has when a download breaks off, so that the next run starts from nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import (
    HfApi,
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
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

from sdpy import __version__
from sdpy.errors import HubError, UsageError

MAX_JSON_BYTES = 1 << 20
MAX_WAIT_SECONDS = 60.0

_PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)


class PassingError(HubError):
    """An error that may be gone at the next try, such as a broken connection.

    Attributes:
        wait: seconds that the hub asks to wait, None where it does not say.
    """

    wait: float | None = None


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub.

    Attributes:
        repository: OWNER/NAME.
        commit: that it belongs to.
        path: in the repository.
        size: bytes; None until `Hub.complete` has asked for it.
        checksum: hex digits: 64 are the SHA-256 of the content, 40 are git's SHA-1 of it; None
            where the hub tells none.
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
        commit: its hash.
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
    if not usable or not endpoint.isascii() or not endpoint.isprintable() or " " in endpoint:
        origin = "HF_ENDPOINT" if given is None else "--endpoint"
        raise UsageError(f"{origin} is '{endpoint}', no address of a hub; write it as https://HOST")
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
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"cannot read the token in {file}: {reason}") from error
    return _check_token(text.strip(), str(file))


def _check_token(token: str, origin: str) -> str:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"{origin} holds no access token; it is one word, such as hf_...")
    return token


class Hub:
    """A model hub.

    Attributes:
        endpoint: its address, without a slash at the end.
        host: the address without its scheme, for people.

    Raises:
        HubError: the environment names a proxy that cannot be used.
    """

    def __init__(self, endpoint: str, token: str | None = None) -> None:
        self.endpoint = endpoint
        self.host = endpoint.partition("://")[2]
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
        self._api = HfApi(
            endpoint=endpoint,
            token=False if token is None else token,
            library_name="sdpy",
            library_version=__version__,
        )

    def list_files(self, repository: str, revision: str | None = None) -> Listing:
        """What a repository holds.

        Args:
            repository: OWNER/NAME.
            revision: branch, tag or commit; None for the main branch.

        Raises:
            HubError: the hub cannot be reached, or has no such repository or revision.
        """
        revision = constants.DEFAULT_REVISION if revision is None else revision
        try:
            with self._errors(f"revision '{revision}' of {repository}", repository):
                info = self._api.model_info(
                    repository,
                    revision=revision,
                    files_metadata=True,
                    timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise HubError(f"{self.host} does not answer as a model hub does") from error
        commit = revision if info.sha is None else info.sha
        listing = Listing(repository, commit)
        for sibling in info.siblings or ():
            checksum = sibling.blob_id if sibling.lfs is None else sibling.lfs.sha256
            path = sibling.rfilename
            listing.files[path] = RemoteFile(repository, commit, path, sibling.size, checksum)
        return listing

    def complete(self, file: RemoteFile) -> RemoteFile:
        """``file`` with its size and checksum, which some mirrors leave out of their listings.

        Raises:
            HubError: the hub does not tell, or cannot be reached.
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
        if found.size is None:
            raise HubError(f"{self.host} does not tell how large {file.path} is; use another hub")
        known = found.etag is not None and len(found.etag) in (40, 64) and _is_hex(found.etag)
        return replace(file, size=found.size, checksum=found.etag if known else None)

    def read_json(self, file: RemoteFile) -> dict[str, Any]:
        """The content of a small JSON file.

        Raises:
            HubError: it cannot be fetched, or is no JSON object.
        """
        content = bytearray()
        with self.open(file) as (_, chunks):
            for chunk in chunks:
                content += chunk
                if len(content) > MAX_JSON_BYTES:
                    break
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise HubError(f"{file.path} of {file.repository} at {self.host} is not a JSON object")
        return found

    @contextmanager
    def open(self, file: RemoteFile, start: int = 0) -> Iterator[tuple[int, Iterator[bytes]]]:
        """The bytes of a file, from ``start`` on.

        Gives where the bytes really begin, ``start`` or 0 where the hub cannot give a part of a
        file, and the bytes in pieces.

        Raises:
            PassingError: the connection broke off or timed out, or the hub is busy.
            HubError: the hub does not give the file.
        """
        # A file that is compressed on its way cannot be asked for by ranges of its bytes.
        headers = {**self._headers, "accept-encoding": "identity"}
        if start:
            headers["range"] = f"bytes={start}-"
        with (
            self._errors(file.path, file.repository),
            get_session().stream(
                "GET",
                self._url(file),
                headers=headers,
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                follow_redirects=True,
            ) as response,
        ):
            hf_raise_for_status(response)
            yield start if response.status_code == 206 else 0, response.iter_bytes()

    def _url(self, file: RemoteFile) -> str:
        return hf_hub_url(file.repository, file.path, revision=file.commit, endpoint=self.endpoint)

    @contextmanager
    def _errors(self, what: str, repository: str) -> Iterator[None]:
        """Turn what a request raises into one line."""
        try:
            yield
        except OfflineModeIsEnabled as error:
            raise HubError(
                f"cannot fetch {what}: HF_HUB_OFFLINE is set, which forbids using the network; "
                "unset it to fetch"
            ) from error
        except HFValidationError as error:
            raise HubError(f"{repository} is no name of a repository; write OWNER/NAME") from error
        except HfHubHTTPError as error:
            raise self._explain(error, what, repository) from error
        except RequestError as error:
            raise PassingError(
                f"the connection to {self.host} failed ({str(error) or type(error).__name__}); "
                "check the network, or name a mirror with --endpoint"
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
        if status in _PASSING_STATUS:
            return _passing(error, f"{self.host} is busy or out of order (status {status})")
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
            reason += f": {error.server_message}"
        return HubError(f"{self.host} does not give {what} ({reason}); is it a model hub?")

    def _gated(self, repository: str) -> str:
        page = f"{self.endpoint}/{repository}"
        if self._token is None:
            return (
                f"{repository} is gated: log in at {page} and accept its licence, then give an "
                "access token of yours (HF_TOKEN, or --token-file FILE)"
            )
        return (
            f"{repository} is gated, and the access token's owner may not read it yet: accept its "
            f"licence at {page}, and see that the token may read gated repositories"
        )


def _passing(error: HfHubHTTPError, message: str) -> PassingError:
    passing = PassingError(f"{message}; try again later, or name a mirror with --endpoint")
    wait = error.response.headers.get("retry-after", "")
    if wait.isdecimal():
        passing.wait = min(float(wait), MAX_WAIT_SECONDS)
    return passing


def _is_hex(text: str) -> bool:
    return all(digit in "0123456789abcdef" for digit in text)
