"""The fuzzer itself: it finds, saves, goes on with the other targets, and repeats itself for the same seed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import run
from tests.fuzz.mutations import mutate
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("CORPUS", "GROWN", "ARTIFACTS"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        monkeypatch.setattr(run, name, folder)
    return tmp_path


def broken(data: bytes) -> None:
    if b"\x80" in data:
        raise KeyError("a finding")


def well(data: bytes) -> None:
    pass


def dies(data: bytes) -> None:
    os._exit(3)


def test_a_finding_is_reported_and_its_input_saved_for_pytest(folders: Path) -> None:
    targets = {"well": well, "broken": broken, "dies": dies}
    found = {each.name: each for each in run.fuzz_all(targets, "mutations", 1.0, 1, 2)}
    assert not found["well"].finding and found["well"].inputs > 10
    assert "KeyError: 'a finding'" in found["broken"].finding
    saved = found["broken"].saved
    assert saved is not None and saved.parent == folders / "corpus" / "broken" and b"\x80" in saved.read_bytes()
    assert found["dies"].finding


def test_a_target_that_hangs_is_a_finding(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SLOW", 1)
    [found] = run.fuzz_all({"hangs": lambda data: time.sleep(60)}, "mutations", 1.0, 1, 1)
    assert "one input took more than 1 s" in found.finding


def test_the_same_seed_gives_the_same_inputs() -> None:
    def inputs(seed: int) -> list[bytes]:
        random = Random(seed)
        return [mutate(b"abcdef", [b"xyz"], random) for _ in range(100)]

    assert inputs(1) == inputs(1) != inputs(2)


def test_the_corpus_has_the_seeds_and_only_small_files_of_known_targets() -> None:
    corpus = Path(run.__file__).parent / "corpus"
    for name, wanted in seeds().items():
        have = list((corpus / name).glob("seed-*"))  # what packers make of the same input differs by their version
        assert len(have) == len(wanted), f"{name}: run `python -m tests.fuzz.seeds`"
    for path in corpus.glob("*/*"):
        assert path.parent.name in TARGETS and path.stat().st_size <= run.LONGEST, path
