"""Where our source handles something."""

from __future__ import annotations

from pathlib import Path

import pyvmm
from pyvmm.step import where

ROOT = Path(pyvmm.__file__).parents[1]


def line(place: where.Place | None) -> str:
    assert place is not None
    file, number = place
    return (ROOT / file).read_text().splitlines()[number - 1].strip()


def test_a_case_is_found_by_the_name_in_it() -> None:
    assert line(where.case_of("pyvmm.vmbus.server", "OpenChannel")) == "case protocol.OpenChannel():"


def test_a_case_is_found_behind_a_function() -> None:
    first = where.case_of("pyvmm.hyperv.user", "Msr.SIMP")
    second = where.case_of("pyvmm.hyperv.user", "Msr.SIMP", after="_write")
    assert first is not None
    assert second is not None
    assert first[1] < second[1]
    assert line(second) == "case Msr.SIMP:"


def test_a_function_is_found_by_its_name() -> None:
    assert line(where.function_of("pyvmm.vmbus.server", "_initiate_contact")).startswith("def _initiate_contact(")


def test_what_is_not_there_has_no_place() -> None:
    assert where.case_of("pyvmm.vmbus.server", "NoSuchMessage") is None
    assert where.function_of("pyvmm.no_such_module", "f") is None
    assert where.method_of(dict, "get") is None
    assert where.shown(None) == ""


def test_a_method_of_a_class_is_found() -> None:
    from pyvmm.devices.balloon.device import BalloonDevice

    assert line(where.method_of(BalloonDevice, "received")).startswith("def received(")
