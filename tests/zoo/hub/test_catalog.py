"""Names of models."""

from __future__ import annotations

import pytest

from sdpy.errors import UsageError
from sdpy.zoo.hub.catalog import MODELS, find_hub_model


def test_a_repository_goes_by_its_own_name() -> None:
    model = find_hub_model("SG161222/Realistic_Vision_V5.1_noVAE")

    assert (model.repository, model.name) == (
        "SG161222/Realistic_Vision_V5.1_noVAE",
        "Realistic_Vision_V5.1_noVAE",
    )


def test_a_file_of_a_repository() -> None:
    model = find_hub_model("owner/name/sub/lora.safetensors")

    assert (model.repository, model.single, model.name) == (
        "owner/name",
        "sub/lora.safetensors",
        "lora.safetensors",
    )


@pytest.mark.parametrize(
    "name",
    [
        "sd16",
        "",
        "/",
        "owner/",
        "/name",
        "../up",
        "owner/..",
        "owner/name/../../etc",
        "a b/c",
        "~/x",
    ],
)
def test_anything_else_lists_the_names(name: str) -> None:
    with pytest.raises(UsageError, match=r"sd15, sd15-inpaint, .*controlnet-tile, .*or OWNER/NAME"):
        find_hub_model(name)


@pytest.mark.parametrize("name", MODELS)
def test_usages_have_no_unknown_fields(name: str) -> None:
    assert MODELS[name].usage.format(path="PATH", data="").startswith("sdpy ")
