"""The verdict on the local KVM."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.launch.probe import Finding, Probe, probe


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))


def test_a_missing_device_is_a_finding_not_an_error(tmp_path: Path) -> None:
    found = probe(path=str(tmp_path / "kvm"))
    assert not found.usable
    assert "No such file" in found.reason
    assert found.findings[0].fix


def test_a_file_that_is_no_kvm_is_not_usable() -> None:
    assert not probe(path="/dev/null").usable


def test_a_missing_device_is_looked_for_again(tmp_path: Path) -> None:
    probe(path=str(tmp_path / "kvm"))
    assert not list((tmp_path / "cache").rglob("probe-*"))


def test_what_is_not_needed_does_not_decide() -> None:
    found = Probe([Finding("a", True, ""), Finding("b", False, "absent", needed=False)])
    assert found.usable
    assert found.reason == ""


def test_the_reason_names_the_first_needed_thing() -> None:
    found = Probe([Finding("a", False, "x", needed=False), Finding("b", False, "is gone")])
    assert found.reason == "b: is gone"
