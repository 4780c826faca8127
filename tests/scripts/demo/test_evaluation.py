from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from scripts import engine
from scripts.demo import adherence, classifier, scenes, sheets, world
from scripts.demo import evaluate as ev
from scripts.demo.adherence import score, withheld_tasks
from scripts.demo.recipes import RECIPES, Recipe
from scripts.demo.scene_sets import Attributes
from scripts.demo.scenes import Scene, edits
from support.tiny import TINY_V

RECIPE = RECIPES["demo"]
RED_HOUSE = Scene("house", "red", "dusk", "rain", 1)
CAT = Scene("cat", None, "dark", "clear", 2)


def misread(scene: Scene, **values: str) -> Attributes:
    return scene.attributes | values


# -- scores --------------------------------------------------------------------------------------


def test_attributes_name_every_value_that_the_classifier_knows() -> None:
    for scene in scenes.combinations():
        for name, value in scene.attributes.items():
            assert value in scenes.ATTRIBUTES[name]
    assert CAT.attributes["colour"] == "none"


def test_scores_count_the_colour_only_where_one_was_asked_for() -> None:
    seen = [misread(RED_HOUSE, time="dawn"), misread(CAT, colour="red")]
    scores = score([RED_HOUSE, CAT], seen)
    assert scores == {"subject": 100, "colour": 100, "time": 50, "weather": 100, "all": 50}
    scores = score([RED_HOUSE, CAT], [misread(RED_HOUSE, colour="white"), CAT.attributes])
    assert scores["colour"] == 0
    assert scores["all"] == 50


def test_no_colours_asked_for_give_no_percentage() -> None:
    assert math.isnan(score([CAT], [CAT.attributes])["colour"])


def test_scores_by_value() -> None:
    seen = [misread(RED_HOUSE, time="dawn"), CAT.attributes]
    values = adherence.score_by_value([RED_HOUSE, CAT], seen)
    assert (values["dusk"], values["dark"], values["house"], values["red"]) == (0, 100, 100, 100)
    assert "dawn" not in values


def test_edits_are_scored_by_what_changes_and_what_stays() -> None:
    seen = [
        RED_HOUSE.attributes,
        misread(RED_HOUSE, time="dawn"),
        misread(RED_HOUSE, weather="snow"),
        misread(RED_HOUSE, weather="snow", time="dawn"),
    ]
    scores = adherence.score_edits([RED_HOUSE] * 4, seen, "time")
    assert scores == {"changed as asked": 50, "rest stayed": 50, "both": 25}


# -- tasks ---------------------------------------------------------------------------------------


def test_tasks_are_withheld_combinations_spread_evenly() -> None:
    tasks = withheld_tasks(216)
    assert all(scenes.is_held_out(task.scene) for task in tasks)
    counts = Counter(tuple(task.scene.attributes.values()) for task in tasks)
    assert len(counts) == sum(map(scenes.is_held_out, scenes.combinations()))
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len({task.seed for task in tasks}) == len({task.scene.seed for task in tasks}) == 216


def test_fewer_tasks_are_the_first_ones_and_of_all_subjects() -> None:
    tasks = withheld_tasks(54)
    assert tasks == withheld_tasks(216)[:54]
    assert {task.scene.subject for task in tasks} == set(scenes.SUBJECTS)


def test_prompts_name_the_colour() -> None:
    for task in withheld_tasks(100):
        found = [c for c in scenes.COLOURS if re.search(rf"\b{c}\b", task.prompt.lower())]
        assert found == ([] if task.scene.colour is None else [task.scene.colour])


@pytest.mark.parametrize("attribute", list(scenes.ATTRIBUTES))
def test_edits_change_one_attribute(attribute: str) -> None:
    subjects = [subject for ground in edits.GROUNDS for subject in ground]
    pairs = scenes.edit_scenes(attribute, 40, subjects)
    assert len(pairs) == 40
    for before, after in pairs:
        changed = {n for n, v in before.attributes.items() if v != after.attributes[n]}
        assert before.subject in subjects
        assert attribute in changed
        if attribute == "subject":
            assert any({before.subject, after.subject} <= set(ground) for ground in edits.GROUNDS)
            # A robot has no colour, so one has to come or go with it.
            assert changed <= {"subject", "colour"}
            assert ("colour" in changed) == ("robot" in (before.subject, after.subject))
        else:
            assert changed == {attribute}


@pytest.mark.parametrize("subject", ["house", "windmill", "balloon", "boat", "castle"])
def test_the_box_holds_what_changes_with_the_colour(subject: str) -> None:
    for seed in range(6):
        blue, red = (Scene(subject, colour, "noon", "clear", seed) for colour in ("blue", "red"))
        left, top, right, bottom = scenes.subject_box(blue, 128)
        assert (left, top, right, bottom) == scenes.subject_box(red, 128)
        changed = np.abs(scenes.draw(blue).astype(int) - scenes.draw(red)).max(-1) > 20
        rows, columns = np.nonzero(changed)
        assert left <= columns.min() and columns.max() < right
        assert top <= rows.min() and rows.max() < bottom


# -- the classifier ------------------------------------------------------------------------------


def test_augmented_images_stay_images_of_the_same_thing() -> None:
    torch.manual_seed(0)
    image = classifier.downsample(classifier.render(RED_HOUSE, RECIPE))
    augmented = classifier.augment(image.repeat(16, 1, 1, 1))
    assert augmented.shape == (16, 3, 64, 64)
    assert augmented.abs().max() <= 1
    assert len({one.numpy().tobytes() for one in augmented}) == 16
    errors = [(one - image[0]).abs().mean().item() for one in augmented]
    assert 0.005 < min(errors) and max(errors) < 0.2


def test_worn_images_lose_a_little() -> None:
    pixels = scenes.draw(RED_HOUSE, 64)
    worn = classifier.through_jpeg(pixels, 3)
    assert worn.shape == pixels.shape and worn.dtype == np.uint8
    assert 0.5 < np.abs(worn.astype(int) - pixels).mean() < 12
    assert np.array_equal(worn, classifier.through_jpeg(pixels, 3))
    assert not np.array_equal(worn, classifier.through_jpeg(pixels, 4))


def test_answers_of_a_mirrored_image_are_those_of_its_scene_seen_so() -> None:
    recipe = RECIPES["demo-96"]
    answers = classifier.expected_answers(recipe, 60).tolist()
    for i, (plain, mirrored) in enumerate(zip(*answers, strict=True)):
        shown = world.scene_at(i, classifier.CLASSIFIER_SET, None).attributes
        for row, expected in ((plain, shown), (mirrored, world.mirrored(shown))):
            named = zip(row, world.ATTRIBUTES.items(), strict=True)
            assert {name: values[n] for n, (name, values) in named} == expected
    plain, mirrored = classifier.expected_answers(RECIPE, 20).tolist()
    assert plain == mirrored


def test_the_classifier_tells_places_apart() -> None:
    torch.manual_seed(0)
    net = classifier.AttributeClassifier(world.ATTRIBUTES).eval()
    net.layers = torch.nn.Identity()  # what they found is given
    found = torch.randn(1, 192, 4, 4)
    moved = []
    for scale in (0.0, 1.0):
        with torch.no_grad():
            torch.nn.init.normal_(net.places, std=scale)
            here, mirrored = (torch.cat(net(x), dim=1) for x in (found, found.flip(-1)))
        moved.append((here - mirrored).norm() / here.norm())
    assert moved[0] < 1e-4 and moved[1] > 0.1


def test_readings_name_the_greatest_logits() -> None:
    scenes_read = [RED_HOUSE, CAT] * 40  # more than one batch

    class Fake:
        values, side = scenes.ATTRIBUTES, 64

        def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
            wanted = [scenes_read[round(p.mean().item() * 100)] for p in images]
            return tuple(
                torch.tensor([[float(v == s.attributes[name]) for v in values] for s in wanted])
                for name, values in self.values.items()
            )

    images = [torch.full((1, 3, 64, 64), i / 100) for i in range(len(scenes_read))]
    assert classifier.classify(Fake(), images) == [scene.attributes for scene in scenes_read]


def test_a_classifier_learns_and_comes_back_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "new" / "classifier.pt"
    trained = classifier.train_classifier(file, renders=192, recipe=RECIPE, epochs=4)
    seen = [scenes.scene_at(i, classifier.CLASSIFIER_SET, None) for i in range(192)]
    images = [classifier.render(scene, RECIPE) for scene in seen]
    found = classifier.classify(trained, images)
    # Four values, of which the most frequent time is far from half.
    assert score(seen, found)["time"] > 50
    assert classifier.classify(classifier.load_classifier(file, RECIPE), images) == found


def test_a_classifier_is_trained_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(file: Path, renders: int, recipe: Recipe) -> None:
        state = classifier.AttributeClassifier(scenes.ATTRIBUTES).state_dict()
        state["norm.bias"].fill_(renders)
        torch.save(state, file)

    monkeypatch.setattr(classifier, "train_classifier", train)
    file = tmp_path / "a.pt"
    assert (classifier.find_classifier(file, 7, RECIPE).norm.bias == 7).all()
    assert (classifier.find_classifier(file, 8, RECIPE).norm.bias == 7).all()


# -- sheets --------------------------------------------------------------------------------------


def test_sheets_hold_all_images(tmp_path: Path) -> None:
    colours = (-1.0, 0.0, 1.0)
    images = [torch.full((1, 3, 128, 128), c) for c in colours]
    path = tmp_path / "sheet.png"
    sheets.write_sheet(path, images, columns=2, labels=["a", "b\nb", "c"])
    with Image.open(path) as sheet:
        step_x, step_y = sheet.width // 2, sheet.height // 2
        middles = [(x + 60, y + 60) for y, x in itertools.product((0, step_y), (0, step_x))]
        assert [sheet.getpixel(at)[0] for at in middles] == [0, 128, 255, 255]


def test_wrapped_lines_fit_and_lose_nothing() -> None:
    text = "a painting of a castle with blue roofs at night in the rain"
    lines = sheets.wrap(text, 25)
    assert " ".join(lines) == text
    assert max(map(len, lines)) <= 25 and len(lines) == 3


# -- everything together, with models that can do nothing ----------------------------------------


def test_parts_generate_classify_and_report(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(engine, "DEMO", TINY_V)
    monkeypatch.setitem(ev.RECIPES, "demo", Recipe("demo", TINY_V))
    state = classifier.make_classifier(ev.RECIPES["demo"]).state_dict()
    torch.save(state, tmp_path / classifier.CLASSIFIER_FILE)
    report = tmp_path / "report.json"
    ev.main(
        [
            *("adherence", "edits", "--run", str(tmp_path), "--files", str(tiny_data)),
            *("--recipe", "demo", "--prompts", "4", "--edits", "2", "--strength", "0.1"),
            *("--json", str(report)),
        ]
    )
    results = json.loads(report.read_text())
    adherence = results["adherence"]
    assert set(adherence["rows"]) == {"renders", "reconstructions", "generated"}
    assert adherence["rows"]["generated"]["all"] == 100 * (1 - len(adherence["failures"]) / 4)
    assert len(results["edits"]) == 5
    assert (tmp_path / "edits.png").exists()
    tables = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(tables) == (1 + 3) + (1 + 5)
