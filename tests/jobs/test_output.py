"""Which files images go to, and which may be replaced."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdpy.errors import OutputError, UsageError
from sdpy.images.metadata import GeneratedImage, ImageTexts
from sdpy.jobs.names import NameTemplate
from sdpy.jobs.output import ImageOutput


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def output(text: str, **options: bool) -> ImageOutput:
    return ImageOutput(NameTemplate.parse(text), **options)


def image(grey: int = 0) -> GeneratedImage:
    return GeneratedImage.of(Image.new("L", (8, 8), grey), ImageTexts(), 1)


def grey_of(path: Path) -> Any:
    with Image.open(path) as opened:
        return opened.getpixel((0, 0))


SEEDS = [{"seed": seed, "steps": 4} for seed in (7, 8, 9)]


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("{seed}.png", ["7.png", "8.png", "9.png"]),
        ("a.png", ["a.1.png", "a.2.png", "a.3.png"]),
        ("{steps}.png", ["4.1.png", "4.2.png", "4.3.png"]),
        ("{n}.png", ["3.png", "4.png", "5.png"]),
        ("{n:02d}-{seed}.png", ["01-7.png", "02-8.png", "03-9.png"]),
        ("{seed}/{n}.png", ["7/1.png", "8/1.png", "9/1.png"]),
    ],
)
def test_several_images_have_several_files(text: str, paths: list[str]) -> None:
    Path("2.png").touch()
    assert [path.as_posix() for path in output(text).paths(SEEDS)] == paths


def test_a_plain_name_replaces() -> None:
    Path("a.png").touch()
    plain = output("a.png")
    plain.check([Path("a.png")])
    assert plain.write(image(), Path("a.png"), {}) == Path("a.png")
    assert grey_of(Path("a.png")) == 0


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("a.png", {"no_clobber": True}, "leave out --no-clobber"),
        ("{slug}.png", {}, "use --overwrite"),
    ],
)
def test_a_file_that_must_stay_stays(text: str, options: dict[str, bool], says: str) -> None:
    Path("a.png").write_bytes(b"old")
    careful = output(text, **options)
    with pytest.raises(UsageError, match=f"a.png exists and is not replaced: .*{says}"):
        careful.check([Path("a.png")])
    with pytest.raises(OutputError, match=r"a.png: it exists"):
        careful.write(image(), Path("a.png"), {})
    assert Path("a.png").read_bytes() == b"old"
    assert [path.name for path in Path().iterdir()] == ["a.png"]


def test_a_link_that_leads_nowhere_is_a_file_that_stays() -> None:
    Path("a.png").symlink_to("nowhere.png")
    with pytest.raises(UsageError, match="exists"):
        output("{slug}.png").check([Path("a.png")])


def test_overwriting_is_done_if_asked_for() -> None:
    Path("a.png").touch()
    eager = output("{slug}.png", overwrite=True)
    eager.check([Path("a.png")])
    eager.write(image(), Path("a.png"), {})
    assert grey_of(Path("a.png")) == 0


def test_folders_are_made_for_fields_only() -> None:
    made = output("new/{seed}/{n}.png")
    (path,) = made.paths(SEEDS[:1])
    made.check([path])
    assert list(Path().iterdir()) == []
    assert made.write(image(), path, SEEDS[0]) == Path("new/7/1.png")
    with pytest.raises(UsageError, match="does not exist"):
        output("other/a.png").check([Path("other/a.png")])


def test_a_number_that_was_taken_meanwhile_is_not_used() -> None:
    counted = output("{n}.png")
    (path,) = counted.paths([{}])
    Path("1.png").touch()
    Path("2.png").touch()
    assert counted.write(image(), path, {}) == Path("3.png")


def test_several_at_once_do_not_collide() -> None:
    written: list[Path] = []

    def work(grey: int) -> None:
        for _ in range(10):
            counted = output("{n:03d}.png")
            (path,) = counted.paths([{}])
            written.append(counted.write(image(grey), path, {}))

    threads = [threading.Thread(target=work, args=(grey,)) for grey in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(written) == [Path(f"{n:03d}.png") for n in range(1, 41)]
    assert sorted(grey_of(path) for path in written) == sorted([1, 2, 3, 4] * 10)
    assert len(list(Path().iterdir())) == 40
