"""Archives of libtorch: the ones that other programs wrote, and ours in libtorch's hands."""

import gc
import json
import os
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sdpy.checkpoints import archives, read_checkpoint, write_checkpoint
from sdpy.checkpoints.ot import DTYPES
from sdpy.errors import OutputError, WeightsError

DATA = Path(__file__).parents[1] / "data" / "ot"
FIXTURES = sorted(DATA.glob("*/*.ot"))
TCH_KINDS = {
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Double": torch.float64,
    "Int64": torch.int64,
    "Int": torch.int32,
    "Uint8": torch.uint8,
    "Bool": torch.bool,
}


def libtorch_parameters(path: Path) -> dict[str, Tensor]:
    """What libtorch's own loader finds, by the names in the archive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(str(path))
    return dict(module.named_parameters(remove_duplicate=False))


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert ours.stride() == theirs.stride()
    # Bytes, so that NaN, infinities and the sign of zero count too.
    assert ours.contiguous().reshape(-1).view(torch.uint8).tolist() == (
        theirs.detach().contiguous().reshape(-1).view(torch.uint8).tolist()
    )


def fixture_id(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", FIXTURES, ids=fixture_id)
def test_fixture_has_the_documented_contents(path: Path) -> None:
    expected = json.loads((path.parent / "contents.json").read_text())[path.name]["tensors"]
    tensors = read_checkpoint(path).tensors
    assert set(tensors) == {entry.get("name_decoded", name) for name, entry in expected.items()}
    for name, entry in expected.items():
        tensor = tensors[entry.get("name_decoded", name)]
        dtype = TCH_KINDS[entry["kind"]] if "kind" in entry else getattr(torch, entry["dtype"])
        assert tensor.dtype == dtype
        assert list(tensor.shape) == entry["shape"]
        if "stride" in entry:
            assert list(tensor.stride()) == entry["stride"]
        assert tensor.flatten().tolist() == entry["values"]


@pytest.mark.parametrize("path", FIXTURES, ids=fixture_id)
def test_fixture_reads_as_libtorch_reads_it(path: Path) -> None:
    tensors = read_checkpoint(path).tensors
    expected = libtorch_parameters(path)
    assert list(tensors) == [name.replace("|", ".") for name in expected]
    for name, tensor in expected.items():
        assert_same(tensors[name.replace("|", ".")], tensor)


def test_there_are_fixtures_of_both_writers() -> None:
    assert {path.parent.name for path in FIXTURES} == {"tch", "ocaml-torch"}
    assert len(FIXTURES) == 16


def test_views_of_one_storage_share_memory() -> None:
    tensors = read_checkpoint(DATA / "tch" / "multi.ot").tensors
    base, view = tensors["transposed"], tensors["view_of_same_storage"]
    assert view.data_ptr() == base.data_ptr() + 6 * 4


# ------------------------------------------------------- files of torch.jit.script(...).save


class Leaf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("steps", torch.arange(4))
        self.scale = 0.5
        self.sizes = [1, 2]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.scale


class Tree(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Leaf(), Leaf()])
        self.norm = nn.LayerNorm(2)
        self.table = nn.Parameter(torch.randn(2, 2).half())

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def save_script(module: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(path))


def test_reads_a_scripted_module_with_submodules(tmp_path: Path) -> None:
    module = Tree().eval()
    save_script(module, tmp_path / "tree.ot")
    tensors = read_checkpoint(tmp_path / "tree.ot").tensors
    assert set(tensors) == set(module.state_dict())
    for name, tensor in module.state_dict().items():
        assert_same(tensors[name], tensor)


def test_reads_a_scripted_module_with_bars_in_its_names(tmp_path: Path) -> None:
    module = nn.Module()
    module.register_parameter("encoder|conv_in|weight", nn.Parameter(torch.randn(2, 3)))
    module.register_buffer("ids", torch.arange(3))
    save_script(module, tmp_path / "flat.ot")
    tensors = read_checkpoint(tmp_path / "flat.ot").tensors
    assert list(tensors) == ["encoder.conv_in.weight", "ids"]
    assert_same(tensors["encoder.conv_in.weight"], module.get_parameter("encoder|conv_in|weight"))


# ------------------------------------------------------------------------------ mapped memory


def mapped_ranges(path: Path) -> list[range]:
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(os.path.realpath(path)):
            start, end = line.split()[0].split("-")
            ranges.append(range(int(start, 16), int(end, 16)))
    return ranges


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")
@pytest.mark.parametrize("suffix", [".ot", ".safetensors"])
def test_tensors_lie_in_the_mapped_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    write_checkpoint(path, {"a": torch.randn(5, 7), "b": torch.randn(3).half()})
    tensors = read_checkpoint(path).tensors
    ranges = mapped_ranges(path)
    for tensor in tensors.values():
        assert any(tensor.data_ptr() in mapped for mapped in ranges)


@pytest.mark.parametrize("suffix", [".ot", ".safetensors"])
def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    write_checkpoint(path, {"a": torch.ones(1000)})
    before = path.read_bytes()
    read_checkpoint(path).tensors["a"].fill_(3.0)
    gc.collect()
    assert path.read_bytes() == before
    assert read_checkpoint(path).tensors["a"].eq(1).all()


def test_a_read_only_file_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.ot"
    write_checkpoint(path, {"a": torch.ones(3)})
    path.chmod(0o444)
    assert read_checkpoint(path).tensors["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("suffix", [".ot", ".safetensors"])
def test_tensors_outlive_the_checkpoint_and_a_rewritten_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    values = torch.randn(1000)
    write_checkpoint(path, {"a": values})
    tensor = read_checkpoint(path).tensors["a"]
    gc.collect()
    write_checkpoint(path, {"a": tensor * 2})
    assert torch.equal(tensor, values)
    assert torch.equal(read_checkpoint(path).tensors["a"], values * 2)


# ------------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("path", FIXTURES, ids=fixture_id)
def test_libtorch_reads_a_rewritten_fixture_alike(path: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / path.name, read_checkpoint(path).tensors)
    expected, got = libtorch_parameters(path), libtorch_parameters(tmp_path / path.name)
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        assert_same(got[name], tensor)
        assert got[name].storage_offset() == tensor.storage_offset()


@pytest.mark.parametrize("path", FIXTURES, ids=fixture_id)
def test_a_rewritten_fixture_has_the_members_and_source_of_the_original(
    path: Path, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / path.name, read_checkpoint(path).tensors)
    with zipfile.ZipFile(path) as theirs, zipfile.ZipFile(tmp_path / path.name) as ours:
        optional = f"{path.stem}/code/__torch__.py.debug_pkl"
        assert ours.namelist() == [name for name in theirs.namelist() if name != optional]
        for name in ours.namelist():
            # The source of mixed names differs only in where libtorch starts the dict.
            if not name.endswith(("data.pkl", "__torch__.py")):
                assert ours.read(name) == theirs.read(name)


def test_members_are_stored_and_aligned(tmp_path: Path) -> None:
    path = tmp_path / "aligned.ot"
    write_checkpoint(path, {f"t{n}": torch.randn(n) for n in range(20)})
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            at = info.header_offset
            lengths = [int.from_bytes(data[at + k : at + k + 2], "little") for k in (26, 28)]
            assert info.compress_type == zipfile.ZIP_STORED
            assert (at + 30 + sum(lengths)) % 64 == 0


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_is_written_bit_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    bits = torch.randint(0, 256, (6 * dtype.itemsize,), dtype=torch.uint8)
    if dtype == torch.bool:
        bits %= 2
    tensors = {
        "block.0.weight": bits.view(dtype).reshape(2, 3),
        "scalar": bits.view(dtype)[0].clone(),
        "empty": torch.empty(0, 3, dtype=dtype),
    }
    path = tmp_path / "x.ot"
    write_checkpoint(path, tensors)
    got = libtorch_parameters(path)
    assert list(got) == ["block|0|weight", "scalar", "empty"]
    for name, tensor in tensors.items():
        assert_same(got[name.replace(".", "|")], tensor)
        assert_same(read_checkpoint(path).tensors[name], tensor)
        assert not got[name.replace(".", "|")].requires_grad


def test_views_are_written_with_their_values_and_share_where_they_overlap(tmp_path: Path) -> None:
    base = torch.arange(10_000.0)
    matrix = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "sparse": base[5000:5003],
        "late": base[5002:5010],
        "alone": base[7:9],
        "strided": base[100:200:10],
        "transposed": matrix.t(),
        "columns": matrix[:, 1:3],
        "whole": matrix,
        "same": matrix,
        "expanded": torch.tensor([1.5]).expand(4, 3),
        "flipped_step": torch.randn(3, 4, 5).permute(2, 0, 1),
        "integers": matrix.view(torch.int32),
        "parameter": nn.Parameter(torch.randn(2)),
    }
    path = tmp_path / "views.ot"
    write_checkpoint(path, tensors)
    assert path.stat().st_size < 5000
    got, again = libtorch_parameters(path), read_checkpoint(path).tensors
    for name, tensor in tensors.items():
        assert torch.equal(got[name], tensor)
        assert torch.equal(again[name], tensor)
    for found in (got, again):
        assert found["late"].data_ptr() == found["sparse"].data_ptr() + 2 * 4
        assert found["transposed"].data_ptr() == found["whole"].data_ptr()
        assert found["transposed"].stride() == (1, 6)
        assert found["same"].data_ptr() == found["whole"].data_ptr()
        assert found["columns"].data_ptr() == found["whole"].data_ptr() + 4


def test_names_that_are_no_identifiers_come_back(tmp_path: Path) -> None:
    names = ["0", "0.1", "class", "None", "bool", "c/d-e", "a b", "größe.重み", "training", "x.."]
    tensors = {name: torch.tensor([float(n)]) for n, name in enumerate(names)}
    path = tmp_path / "odd.ot"
    write_checkpoint(path, tensors)
    assert list(read_checkpoint(path).tensors) == names
    got = libtorch_parameters(path)
    for name, tensor in tensors.items():
        assert torch.equal(got[name.replace(".", "|")], tensor)


@pytest.mark.parametrize("name", ["a|b", "", 'a"b', "a\\b", "a\nb"])
def test_names_that_would_not_come_back_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match="rename it"):
        write_checkpoint(tmp_path / "x.ot", {name: torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".ot", ".safetensors"])
@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, device="meta"),
        torch.ones(2).to_sparse(),
        torch.ones(2).to(torch.float8_e4m3fn),
    ],
    ids=["complex", "meta", "sparse", "float8"],
)
def test_tensors_that_the_format_cannot_hold_are_refused(
    tmp_path: Path, tensor: Tensor, suffix: str
) -> None:
    with pytest.raises(WeightsError, match="cannot store odd.one"):
        write_checkpoint(tmp_path / f"x{suffix}", {"odd.one": tensor})
    assert list(tmp_path.iterdir()) == []


def test_stem_that_is_not_plain_ascii(tmp_path: Path) -> None:
    path = tmp_path / "öl & wasser.v1.ot"
    write_checkpoint(path, {"a": torch.ones(2)})
    assert libtorch_parameters(path)["a"].tolist() == [1, 1]
    assert read_checkpoint(path).tensors["a"].tolist() == [1, 1]


def test_headers_of_very_large_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LARGE_MEMBER", 1000)
    path = tmp_path / "large.ot"
    tensors = {"a": torch.randn(3), "big": torch.randn(1000), "z": torch.randn(5)}
    write_checkpoint(path, tensors)
    got, again = libtorch_parameters(path), read_checkpoint(path).tensors
    for name, tensor in tensors.items():
        assert_same(got[name], tensor)
        assert_same(again[name], tensor)
        assert again[name].data_ptr() % 64 == 0


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.ot"
    write_checkpoint(path, {"a": torch.ones(2)})
    before = path.read_bytes()
    with pytest.raises(WeightsError):
        write_checkpoint(path, {"a": torch.ones(2), "b|c": torch.ones(2)})
    assert path.read_bytes() == before
    with pytest.raises(OutputError, match="missing"):
        write_checkpoint(tmp_path / "missing" / "x.ot", {"a": torch.ones(2)})
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.ot"]
