"""The catalogue of `pyvmm explain` is complete, and what it names exists."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import get_args

import pytest

from pyvmm.explain import declared, lookup
from pyvmm.explain.catalogue import entries
from pyvmm.explain.enumerations import ENUMERATIONS
from pyvmm.explain.kinds import KINDS, Kind
from pyvmm.explain.references import all_modules, exists
from pyvmm.hyperv.tlfs import HypercallCode, Msr
from pyvmm.machine.devices import DEVICES
from pyvmm.vmbus import names, protocol

HANDLED = ("hypercall", "message", "device", "qmp-command", "qmp-event")
"""Kinds of which each entry is handled somewhere."""
UNSOURCED = ("echo", "state", "port", "address", "trace", "device", "qmp-command", "qmp-event", "exit-status")
"""Kinds that are pyvmm's own, or have entries that are."""


@pytest.mark.parametrize("kind", KINDS)
def test_each_entry_tells_what_it_is_and_where_it_is_declared(kind: str) -> None:
    for entry in entries(kind):
        assert entry.text and entry.what, entry
        assert entry.place is not None and exists(entry.place), entry
        assert kind in UNSOURCED or "/echo/" in entry.place.path or entry.spec or entry.linux, entry


@pytest.mark.parametrize("kind", HANDLED)
def test_the_code_that_handles_it_exists(kind: str) -> None:
    for entry in entries(kind):
        handlers = entry.handlers()
        assert handlers, entry
        assert all(exists(use.place) for use in handlers), entry


def test_each_msr_hypercall_message_and_guid_is_found() -> None:
    for member in (*Msr, *HypercallCode):
        assert any(each.name == member.name for each in lookup.find(hex(member)))
    for kind in protocol.MessageType:
        assert [each.name for each in lookup.find(str(int(kind)), ["message"])] == [kind.name]
    for guid in names.NAMES:
        assert lookup.find(guid)
    for name in DEVICES:
        assert any(each.kind == "device" for each in lookup.find(name))


def test_each_vmbus_message_has_its_fields() -> None:
    classes = [*get_args(protocol.GuestMessage), *get_args(protocol.HostMessage)]
    for cls in classes:
        (entry,) = lookup.find(cls.__name__, ["message"])
        assert entry.number == cls.TYPE
        assert len(entry.fields) >= len(cls._names) or cls is protocol.VersionResponseFeatures


def test_each_trace_event_is_an_entry() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "pyvmm", "trace", "list", "--json"], capture_output=True, check=True
    )
    assert {each.name for each in entries("trace")} == {each["name"] for each in json.loads(listed.stdout)}


def test_each_kind_has_entries_and_each_enumeration_a_kind() -> None:
    assert all(entries(kind) for kind in KINDS)
    assert {each.kind for each in ENUMERATIONS} <= KINDS.keys()


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_the_examples_of_a_kind_are_found(kind: Kind) -> None:
    for example in kind.examples:
        found = lookup.with_value(example) if "=" in example else lookup.find(example)
        assert any(each.kind == kind.name for each in found), example


def test_a_member_may_share_its_siblings_explanation() -> None:
    assert declared.member_doc("pyvmm.hyperv.tlfs", "Msr", "SINT7").startswith("A synthetic interrupt source")


def test_a_docstring_is_taken_apart() -> None:
    text = declared.split('HV_X64_MSR_SIMP: the page of messages. More (`PageMsr`). TLFS, "SIMP Register".')
    assert text == declared.Text(
        "HV_X64_MSR_SIMP", ('TLFS, "SIMP Register"',), "The page of messages. More (`PageMsr`)."
    )
    assert text.first == "The page of messages."


def test_all_modules_can_be_read() -> None:
    assert sum(1 for _ in all_modules()) > 300
