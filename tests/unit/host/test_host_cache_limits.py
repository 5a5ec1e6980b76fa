"""Which saved host serves a command, and which are removed."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pyvmm.host import cache_limits, daemon, preload, snapshot
from pyvmm.host.boot_image import BootImage
from pyvmm.host.snapshot import Saved

IMAGE = BootImage(Path("k"), Path("i"), "digest")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path))
    monkeypatch.setattr(snapshot, "_fits", lambda image: f"fits {image.digest}")
    monkeypatch.setattr(snapshot, "_installed_mib", lambda: 1 << 20)
    (tmp_path / "host").mkdir()
    return tmp_path / "host"


def keep(cache: Path, name: str, *, used: float = 0.0, disk: int = 0, **changes: object) -> Saved:
    """A saved host of this checkout with 1536 MiB, with `changes`."""
    folder = cache / f"saved-{name}"
    folder.mkdir()
    here = str(preload.REPOSITORY)
    saved = Saved(
        str(folder), "fits digest", 1536, sys.executable, here, preload.sources_digest(), preload.agent_digest(),
        [sys.executable], preload.stable_digest([sys.executable]),
    )  # fmt: skip
    saved = replace(saved, **changes)  # type: ignore[arg-type]
    (folder / "saved.json").write_text(json.dumps(asdict(saved)))
    (folder / "state").write_bytes(bytes(disk))
    os.utime(folder, (time.time() - used,) * 2)
    return saved


def test_the_smallest_with_enough_memory_serves(cache: Path) -> None:
    large, small = keep(cache, "b", memory_mib=4608), keep(cache, "a")
    assert snapshot.find(IMAGE, 1536) == small
    assert snapshot.find(IMAGE, 1537) == large
    assert snapshot.find(IMAGE, 4609) is None


def test_one_with_more_memory_than_the_machine_has_serves_only_those_who_want_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = keep(cache, "b", memory_mib=4608)
    monkeypatch.setattr(snapshot, "_installed_mib", lambda: 2048)
    assert snapshot.find(IMAGE, 1536) is None
    assert snapshot.find(IMAGE, 4608) == large


@pytest.mark.parametrize(
    "other",
    [
        {"fits": "fits another"},
        {"python": "/usr/bin/another"},
        {"agent": "another"},
        {"stable": "another"},
    ],
)
def test_one_that_does_not_fit_is_not_used(cache: Path, other: dict[str, str]) -> None:
    keep(cache, "a", **other)
    assert snapshot.find(IMAGE, 1536) is None


def test_two_checkouts_each_find_their_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preload, "sources_quiet_for", lambda: 1e6)
    keep(cache, "a", repository="/elsewhere", sources="theirs")
    assert snapshot.find(IMAGE, 1536) is None
    ours = keep(cache, "b")
    assert snapshot.find(IMAGE, 1536) == ours
    monkeypatch.setattr(preload, "sources_digest", lambda: "theirs")
    found = snapshot.find(IMAGE, 1536)
    assert found is not None
    assert found.repository == "/elsewhere"


def test_while_sources_are_edited_another_state_of_them_serves(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = keep(cache, "a", repository="/elsewhere", sources="theirs")
    monkeypatch.setattr(preload, "sources_quiet_for", lambda: 1.0)
    assert snapshot.find(IMAGE, 1536) == theirs
    assert snapshot.find(IMAGE, 1536, exact=True) is None
    before = keep(cache, "b", sources="before the edit")
    assert snapshot.find(IMAGE, 1536) == before


def test_what_is_no_saved_host_is_passed_over(cache: Path) -> None:
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"folder": 1}')):
        (cache / f"saved-{name}").mkdir()
        (cache / f"saved-{name}" / "saved.json").write_text(text)
    (cache / "saved-d").touch()
    assert snapshot.all_saved() == []


def names(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_what_is_kept_is_bounded_by_size_and_the_longest_unused_go(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_limits, "SAVED_BYTES", 250 << 10)
    for number, name in enumerate("abcd"):
        keep(cache, name, used=number * 1000, disk=100 << 10)
    cache_limits.tidy(keep=cache / "saved-d")
    assert names(cache) == ["saved-a", "saved-d"]


def test_what_is_kept_is_bounded_by_age(cache: Path) -> None:
    keep(cache, "new", used=cache_limits.UNUSED_SECONDS - 100)
    keep(cache, "old", used=cache_limits.UNUSED_SECONDS + 100)
    for name in ("boot-old", "kit-old", "probe-old"):
        (cache / name).mkdir()
        os.utime(cache / name, (1, 1))
    (cache / "boot-new").mkdir()
    cache_limits.tidy()
    assert names(cache) == ["boot-new", "saved-new"]


def test_saved_hosts_of_what_is_gone_go_first(cache: Path, tmp_path: Path) -> None:
    keep(cache, "a", repository=str(tmp_path / "gone"))
    keep(cache, "b", python=str(tmp_path / "gone"))
    keep(cache, "c")
    (cache / "saved-c/state").unlink()
    keep(cache, "d")
    cache_limits.tidy()
    assert names(cache) == ["saved-d"]


def test_what_is_in_use_stays(cache: Path) -> None:
    keep(cache, "a")
    with cache_limits.in_use(cache / "saved-a"):
        assert cache_limits.clear() == []
        assert names(cache) == ["saved-a"]
    assert cache_limits.clear() == [cache / "saved-a"]


def test_use_is_noted(cache: Path) -> None:
    keep(cache, "a", used=1e6)
    with cache_limits.in_use(cache / "saved-a"):
        pass
    assert time.time() - (cache / "saved-a").stat().st_mtime < 100


def test_a_kept_up_host_of_a_checkout_that_speaks_otherwise_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = {"pid": 1, "memory_mib": 4608, "idle": 9, "agent": preload.agent_digest()}
    monkeypatch.setattr(daemon, "_information", lambda: told)
    monkeypatch.setattr(daemon, "_connect", lambda: "a connection")
    assert daemon.connect(1536) == "a connection"  # larger than needed
    assert daemon.connect(4609) is None
    told["agent"] = "another"
    assert daemon.connect(1536) is None
