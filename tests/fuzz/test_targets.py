"""Every fuzz target on seeded noise, and on the inputs that were kept because they once found something.

`tests/fuzz/corpus/TARGET/` holds those. Longer, coverage-guided runs use the same targets.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.fuzz.targets import TARGETS

ROUNDS = 60
LENGTHS = (0, 1, 7, 40, 200, 600)
CORPUS = Path(__file__).parent / "corpus"


def _play(name: str, data: bytes) -> None:
    try:
        TARGETS[name](data)
    except BaseException as error:
        error.add_note(f"fuzz target {name}, input {data.hex()}")
        raise


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs_and_noise_are_refused_or_served(name: str) -> None:
    for path in sorted((CORPUS / name).glob("*")):
        _play(name, path.read_bytes())
    random = Random(name)
    for number in range(ROUNDS):
        _play(name, random.randbytes(LENGTHS[number % len(LENGTHS)]))
