"""The loopback hub against huggingface_hub's own downloads: is it a hub at all?"""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from support.hub_contents import SD15, pipeline
from support.loopback import Break, LoopbackHub, Status, commit_of

RESUMES = tuple(map(int, huggingface_hub.__version__.split(".")[:2])) >= (1, 33)


@pytest.mark.skipif(not RESUMES, reason="this huggingface_hub gives up when a connection breaks")
@pytest.mark.parametrize("whole_only", [False, True])
def test_huggingface_hub_fetches_files(hub: LoopbackHub, tmp_path: Path, whole_only: bool) -> None:
    files = hub.repositories[SD15] = pipeline("sd15")
    unet = "unet/diffusion_pytorch_model.safetensors"
    hub.faults[unet] = [Break(30_000)]  # huggingface_hub asks for the rest by itself
    hub.whole_only = whole_only

    for path in (unet, "tokenizer/merges.txt"):
        found = huggingface_hub.hf_hub_download(
            SD15, path, endpoint=hub.address, cache_dir=tmp_path
        )
        assert Path(found).read_bytes() == files[path]
    assert len(hub.fetched(unet)) == 2


@pytest.mark.skipif(not RESUMES, reason="this huggingface_hub gives up when a connection breaks")
def test_huggingface_hub_does_not_resume_in_the_next_run(hub: LoopbackHub, tmp_path: Path) -> None:
    """When this fails, see whether `sdpy.zoo.hub.fetch` is still needed."""
    unet = "unet/diffusion_pytorch_model.safetensors"
    hub.repositories[SD15] = pipeline("sd15")
    hub.faults[unet] = [Break(30_000), Status(403)]

    with pytest.raises(HfHubHTTPError):
        huggingface_hub.hf_hub_download(SD15, unet, endpoint=hub.address, local_dir=tmp_path)
    hub.requests.clear()
    huggingface_hub.hf_hub_download(SD15, unet, endpoint=hub.address, local_dir=tmp_path)

    assert [request.headers["Range"] for request in hub.fetched(unet)] == [None]


def test_huggingface_hub_understands_the_errors(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    hub.repositories["owner/gated"] = {"config.json": b"{}"}
    hub.gated.add("owner/gated")

    def fetch(repository: str, path: str, revision: str | None = None) -> None:
        huggingface_hub.hf_hub_download(
            repository, path, revision=revision, endpoint=hub.address, cache_dir=tmp_path
        )

    with pytest.raises(EntryNotFoundError):
        fetch(SD15, "nothing.safetensors")
    with pytest.raises(GatedRepoError):
        fetch("owner/gated", "config.json")
    with pytest.raises(RepositoryNotFoundError):
        fetch("owner/nothing", "config.json")
    with pytest.raises(RevisionNotFoundError):
        huggingface_hub.HfApi(hub.address).model_info(SD15, revision="nowhere")


def test_huggingface_hub_reads_the_listing(hub: LoopbackHub) -> None:
    files = hub.repositories[SD15] = pipeline("sd15")

    info = huggingface_hub.HfApi(hub.address).model_info(SD15, files_metadata=True)

    assert info.sha == commit_of(files)
    assert {sibling.rfilename: sibling.size for sibling in info.siblings or ()} == {
        path: len(content) for path, content in files.items()
    }
