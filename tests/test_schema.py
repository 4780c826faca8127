"""The tables of keys, and what becomes of files that do not fit them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpy.errors import WeightsError
from sdpy.schema import flag, listed, number, one_of, only, told, validate, whole, without_effect

TABLE = {
    "channels": whole(1, 100),
    "scale": number(0, 2),
    "heads": listed(whole(1, 64), longest=3, or_one=True),
    "act": one_of("silu", "gelu"),
    "pools": flag(),
    "padding": only(1),
    "clips": told(False),
    **without_effect("dropout"),
}


def test_what_is_used_is_kept_and_nothing_else() -> None:
    found = {
        "channels": 3,
        "scale": 1,
        "heads": [2, 3],
        "act": "silu",
        "pools": True,
        "padding": 1,
        "clips": False,
        "dropout": 0.5,
        "_class_name": "UNet",
    }
    checked = validate(found, TABLE, "x.json")
    assert checked.values == {
        "channels": 3,
        "scale": 1,
        "heads": [2, 3],
        "act": "silu",
        "pools": True,
    }
    assert checked.notices == ()


def test_null_is_the_default() -> None:
    assert validate(dict.fromkeys([*TABLE, "new"]), TABLE, "x").values == {}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("channels", "3", "'channels' is '3', but has to be a whole number from 1 to 100"),
        ("channels", True, "'channels' is true, but"),
        ("channels", 101, "is 101, but"),
        ("scale", float("nan"), "is NaN, but has to be a number from 0 to 2"),
        ("scale", 1e400, "is Infinity, but"),
        ("heads", [], "'heads' is [], but has to be a whole number from 1 to 64, or a list"),
        ("heads", [1, 2, 3, 4], "is [1, 2, 3, 4], but"),
        ("heads", {}, "is a JSON object, but"),
        ("act", "relu", "is 'relu', but has to be one of silu, gelu"),
        ("act", ["silu"], "is ['silu'], but"),
        ("act", "\x1b[2J" + "x" * 99, "is '\\x1b[2J" + "x" * 56 + "...', but"),
        ("pools", 1, "is 1, but has to be true or false"),
        ("padding", 0, "'padding' is 0, but sdpy knows only 1; the image would be another"),
        ("padding", True, "is true, but sdpy knows only 1"),
    ],
)
def test_what_does_not_fit_is_refused(key: str, value: Any, expected: str) -> None:
    with pytest.raises(WeightsError) as caught:
        validate({key: value}, TABLE, "folder/x.json")
    assert str(caught.value).startswith("folder/x.json: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_followed_is_told() -> None:
    checked = validate({"clips": True, "new": 1, "other": False}, TABLE, "x.json")
    assert checked.notices == (
        "x.json: 'clips' is true, but sdpy knows only false and does as if it were that",
        "x.json: 'new' is unknown and has no effect",
        "x.json: 'other' is unknown and has no effect",
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from([*TABLE]), inner),
)


@given(JSON)
def test_any_json_is_taken_or_refused_in_one_line(found: Any) -> None:
    found = json.loads(json.dumps(found))
    try:
        checked = validate(found, TABLE, "x.json")
    except WeightsError as error:
        assert str(error).isprintable()
    else:
        assert checked.values.keys() <= TABLE.keys()
        assert all(text.isprintable() for text in checked.notices)
