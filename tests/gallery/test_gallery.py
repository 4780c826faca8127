"""Contact sheets and the page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdpy.cli.app import run
from sdpy.gallery.axes import arrange
from sdpy.gallery.images import GalleryImage, find_images, read_image
from sdpy.images.files import save_image
from sdpy.images.metadata import ImageTexts
from sdpy.metadata.parameters import Parameters, parameters_text

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NASTY = '</script><img src=x onerror="document.title=1">&amp; \u2028 "quoted" $(rm) café 🏰'


def image(seed: int, sampler: str = "DDIM", **facts: str) -> GalleryImage:
    facts = {"Seed": f"{seed}", "Sampler": sampler, **facts}
    return GalleryImage(Path(f"{seed}-{sampler}.png"), "cat", "", facts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pics"
    (place / "below").mkdir(parents=True)
    for seed in (9, 10):
        for sampler in ("DDIM", "Euler a"):
            facts = {"Steps": "4", "Sampler": sampler, "Seed": f"{seed}", "Version": "x, y"}
            text = parameters_text(Parameters(NASTY, "fog", facts))
            colour = (seed * 20, 0, 255 if sampler == "DDIM" else 0)
            path = place / "below" / f"{seed} {sampler}#?.png"
            save_image(Image.new("RGB", (40, 30), colour), path, ImageTexts(text))
    (place / "notes.txt").write_text("x")
    (place / "broken.png").write_bytes(b"x")
    return place


def test_two_facts_that_differ_are_columns_and_rows() -> None:
    images = [image(seed, sampler) for sampler in ("DDIM", "LMS") for seed in (10, 9)]
    sheet = arrange(images, None, None, 3)
    assert sheet.columns == ("Seed: 9", "Seed: 10")
    assert sheet.rows == ("Sampler: DDIM", "Sampler: LMS")
    assert sheet.cells[1][0] == images[3]
    assert not sheet.captions


def test_three_facts_share_the_rows() -> None:
    images = [
        image(seed, sampler, **{"CFG scale": scale})
        for sampler in ("DDIM", "LMS")
        for scale in ("10", "2")
        for seed in (1, 2, 3)
    ]
    rows = tuple(
        f"Sampler: {sampler}, CFG scale: {scale}"
        for sampler in ("DDIM", "LMS")
        for scale in ("2", "10")
    )
    sheet = arrange(images[:-1], None, None, 3)
    assert (sheet.columns, sheet.rows) == (("Seed: 1", "Seed: 2", "Seed: 3"), rows)
    assert sheet.cells[0] == tuple(images[3:6])
    # Of the last image there is none yet.
    assert (sheet.cells[2], sheet.cells[3]) == ((*images[9:11], None), tuple(images[6:9]))
    sheet = arrange(images, "sampler", "seed", 3)
    assert (len(sheet.columns), sheet.rows) == (3, rows)


def test_what_is_asked_for_names_them() -> None:
    images = [image(seed, Steps=f"{seed % 2}") for seed in range(4)]
    sheet = arrange(images, None, "steps", 3)
    assert (sheet.columns, sheet.rows) == (("Steps: 0", "Steps: 1"), ())
    assert [cell and cell.value("seed") for row in sheet.cells for cell in row] == [*"0123"]
    sheet = arrange(images, "scheduler", "seed", 3)
    assert (sheet.rows, len(sheet.columns)) == (("Sampler: DDIM",), 4)


def test_other_pictures_are_in_their_order() -> None:
    images = [image(seed, Steps=f"{seed}", Model=f"{seed}") for seed in range(4)]
    sheet = arrange(images, None, None, 3)
    assert sheet.cells == ((*images[:3],), (images[3], None, None))
    assert sheet.captions


def test_a_sheet_has_its_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["grid", str(folder), "-o", str(folder / "sheet.png"), "-q"]) == 0
    with Image.open(folder / "sheet.png") as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 20)}
    assert {(180, 0, 255), (200, 0, 0), (180, 0, 0), (200, 0, 255)} <= colours
    assert run(["grid", str(folder), "--columns", "weather"]) == 2
    assert "no image says its 'weather'" in capsys.readouterr().err
    assert run(["grid", str(folder / "nowhere")]) == 2


def page_of(folder: Path) -> str:
    assert run(["grid", str(folder), "--html", "-q"]) == 0
    return (folder / "index.html").read_text("utf-8")


class Tags(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def data_of(page: str) -> list[dict[str, Any]]:
    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_is_whole_and_escaped(folder: Path) -> None:
    page = page_of(folder)
    tags = Tags()
    tags.feed(page)
    assert tags.addresses == []
    assert tags.names.count("script") == 2 and tags.names.count("img") == 1
    assert not re.search(r"https?://|@import|url\(", page)
    entries = data_of(page)
    assert len(entries) == 4
    assert {entry["prompt"] for entry in entries} == {NASTY}
    assert entries[0]["path"] == "below/10%20DDIM%23%3F.png"
    assert (entries[0]["width"], entries[0]["height"]) == (40, 30)
    assert entries[0]["command"].startswith("sdpy replay ")


def test_the_command_makes_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    monkeypatch.chdir(tmp_path)
    words = ["generate", '-2 "cats" $HOME', "-m", "demo", "--steps", "1", "-q", "-n", "-dog"]
    words[1:2] = []
    words += ["--plain-kernels", "--seed", "3", "--", '-2 "cats" $HOME']
    assert run(words) == 0
    line = read_image(Path("sd_final.png")).command
    program, *again = shlex.split(line)
    assert program == "sdpy"
    assert run([*again[:1], "-o", "again.png", "-q", *again[1:]]) == 0
    with Image.open("sd_final.png") as one, Image.open("again.png") as other:
        assert one.tobytes() == other.tobytes()


def test_only_pictures_are_found(folder: Path) -> None:
    paths, others = find_images(folder)
    assert (len(paths), others) == (5, 1)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_works_in_a_browser(folder: Path, tmp_path: Path) -> None:
    page = page_of(folder)
    entries = data_of(page)
    many = [
        {**entries[k % 4], "name": f"{k:04d}.png", "facts": {"Seed": str(k)}} for k in range(5000)
    ]
    many[77]["prompt"] = "a castle"
    start, end = page.index('id="data">') + 10, page.index("</script>")
    data = json.dumps(many).replace("<", "\\u003c")
    press = "key => dispatchEvent(new KeyboardEvent('keydown', { key }))"
    script = f"""<script>
      const press = {press}, seen = {{}};
      seen.cells = grid.children.length;
      filter.value = "castle"; filter.oninput(); seen.found = get("count").textContent;
      filter.value = "seed:499"; filter.oninput(); seen.fields = shown.length;
      filter.value = ""; sort.value = "Seed"; sort.onchange(); get("order").click();
      seen.first = shown[0].name;
      press("Home"); press("ArrowRight"); press("ArrowDown"); seen.chosen = chosen === 1 + columns;
      press("End"); seen.end = chosen; seen.visible = cells.has(chosen);
      open(); press("ArrowLeft"); seen.open = dialog.open; seen.prompt = get("prompt").textContent;
      seen.command = get("command").textContent;
      dialog.close();
      document.title = JSON.stringify(seen);
    </script></body>"""
    (tmp_path / "test.html").write_text(
        page[:start] + data + page[end:].replace("</body>", script), "utf-8"
    )
    dom = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *(f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "test.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None
    seen = json.loads(title[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    assert seen.pop("prompt") == NASTY
    assert seen.pop("command").startswith("sdpy replay")
    assert 0 < seen.pop("cells") < 100
    assert seen == {
        "found": "1 of 5000",
        "fields": 15,
        "first": "4999.png",
        "chosen": True,
        "end": 4999,
        "visible": True,
        "open": True,
    }
