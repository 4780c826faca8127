"""What fuzzing has found, what it starts from, and mutations of both: never another error."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.fuzz.seeds import seeds
from scripts.fuzz.targets import TARGETS

FINDS = Path(__file__).parents[2] / "data" / "fuzz"


@pytest.mark.parametrize("name", TARGETS)
def test_good_input_and_what_was_found(name: str) -> None:
    found = [path.read_bytes() for path in sorted((FINDS / name).glob("*"))]
    tried = [*seeds(name), *found]
    assert tried
    for data in tried:
        TARGETS[name].run(data)


def test_every_find_belongs_to_a_target() -> None:
    assert {path.name for path in FINDS.iterdir()} <= TARGETS.keys()


# Another byte somewhere, a piece left out, a piece put in.
MUTATIONS = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "put"]), st.integers(0, 2**16), st.binary(max_size=9)),
    min_size=1,
    max_size=4,
)


def mutated(data: bytes, mutations: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, piece in mutations:
        i = place % (len(data) + 1)
        end = i if kind == "put" else i + len(piece)
        data = data[:i] + (b"" if kind == "cut" else piece) + data[end:]
    return data


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=40)
@given(number=st.integers(0, 1000), mutations=MUTATIONS)
def test_mutated_input(name: str, number: int, mutations: list[tuple[str, int, bytes]]) -> None:
    good = SEEDS[name]
    TARGETS[name].run(mutated(good[number % len(good)], mutations))


SEEDS = {name: list(seeds(name)) for name in TARGETS}
