"""Parts of an initramfs: appended once and kept; programs of packages with the libraries that they name."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pyvmm.errors import HostError
from pyvmm.images import packages, parts, programs
from pyvmm.images.cpio import CpioWriter, read_cpio
from pyvmm.images.parts import Part, append_parts
from pyvmm.images.programs import Linking, Programs, collect, linking
from pyvmm.launch import guest_parts
from pyvmm.launch.build import features
from pyvmm.launch.options import GuestOptions


def elf(*needed: str, loader: str = "") -> bytes:
    """A program with these libraries, as the linker lays them out: one PT_LOAD, PT_INTERP, PT_DYNAMIC."""
    strings, offsets = b"\0", []
    for name in needed:
        offsets.append(len(strings))
        strings += name.encode() + b"\0"
    start = 64 + 3 * 56
    interp = loader.encode() + b"\0"
    dynamic = b"".join(struct.pack("<QQ", 1, offset) for offset in offsets)
    dynamic += struct.pack("<QQQQ", 5, 0x400000 + start + len(interp), 0, 0)
    whole = start + len(interp) + len(strings) + len(dynamic)
    segments = [(1, 0, 0x400000, whole), (2, whole - len(dynamic), 0, len(dynamic))]
    segments.append((3, start, 0, len(interp)) if loader else (0, 0, 0, 0))
    head = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0)
    )
    table = b"".join(struct.pack("<IIQQQQQQ", kind, 4, at, gpa, 0, size, size, 0) for kind, at, gpa, size in segments)
    return head + table + interp + strings + dynamic


def test_a_program_names_its_loader_and_libraries() -> None:
    assert linking(elf("libc.so.6", "libm.so.6", loader="/lib64/ld.so")) == Linking(
        "/lib64/ld.so", ("libc.so.6", "libm.so.6")
    )
    assert linking(elf()) == linking(b"#!/bin/sh\n") == Linking("", ())


@pytest.mark.parametrize("data", [elf("libc.so.6")[:70], elf("libc.so.6")[:-40], elf("x")[:64] + b"\xff" * 400])
def test_a_damaged_program_is_refused_or_names_nothing(data: bytes) -> None:
    try:
        found = linking(data)
    except HostError as error:
        assert "damaged" in str(error)
    else:
        assert found == Linking("", ())


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, bytes]]:
    """Packages made up here, by name: files by path. A package depends on all that come after it."""
    shelf: dict[str, dict[str, bytes]] = {}
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path))

    def package(name: str) -> packages.Package:
        names = list(shelf)
        return packages.Package(name, "1", tuple(names[names.index(name) + 1 :]), packages.MACHINE)

    def unpack(package: packages.Package, folder: Path) -> None:
        for path, data in shelf[package.name].items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)

    monkeypatch.setattr(programs, "find_package", lambda name, suites: package(name))
    monkeypatch.setattr(programs, "dependency", lambda of, pattern: package(pattern.replace("\\", "")))
    monkeypatch.setattr(programs, "unpack_package", unpack)
    return shelf


def test_programs_come_with_their_libraries_and_those_of_these(debian: dict[str, dict[str, bytes]]) -> None:
    debian["tool"] = {"usr/bin/tool": elf("libone.so.1", loader="/lib64/ld.so"), "usr/bin/other": b"not wanted"}
    debian["libone1"] = {"usr/lib/x86_64-linux-gnu/libone.so.1": elf("libc.so.6")}
    debian["libc6"] = {"lib/x86_64-linux-gnu/libc.so.6": elf(), "lib/x86_64-linux-gnu/ld.so": elf()}
    debian["libtwo2"] = {"lib/x86_64-linux-gnu/libtwo.so.2": elf()}
    files = collect([Programs("tool", ("usr/bin/tool",))])
    assert sorted(files) == [
        "lib/x86_64-linux-gnu/libc.so.6",
        "lib/x86_64-linux-gnu/libone.so.1",
        "lib64/ld.so",
        "usr/bin/tool",
    ]


def test_what_a_package_does_not_hold_is_named(debian: dict[str, dict[str, bytes]]) -> None:
    debian["tool"] = {"usr/bin/tool": elf("libgone.so.1")}
    with pytest.raises(HostError, match=r"tool 1: the packages that it depends on hold no libgone\.so\.1"):
        collect([Programs("tool", ("usr/bin/tool",))])
    with pytest.raises(HostError, match="holds no usr/sbin/tool"):
        collect([Programs("tool", ("usr/sbin/tool",))])


def test_parts_are_appended_and_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, debian: dict[str, dict[str, bytes]]
) -> None:
    debian["tool"] = {"usr/bin/tool": b"#!/bin/sh\n"}
    base = CpioWriter()
    base.file("init", b"the init")
    initrd = tmp_path / "image-1.cpio"
    initrd.write_bytes(base.build())
    part = Part("x", (Programs("tool", ("usr/bin/tool",)),), "echo hi\n", (("var/lib/x/", ""), ("etc/x", "text\n")))
    lines: list[str] = []
    made = append_parts(initrd, [part], lines.append)
    data = made.read_bytes()
    assert data.startswith(initrd.read_bytes())
    entries = {entry.name: entry.data for entry in read_cpio(data[len(initrd.read_bytes()) :])}
    assert entries["etc/pyvmm/start.x"] == b"echo hi\n"
    assert (entries["etc/x"], entries["usr/bin/tool"], entries["var/lib/x"]) == (b"text\n", b"#!/bin/sh\n", b"")
    assert lines == ["fetching tool"]
    monkeypatch.setattr(parts, "_archive", lambda part, progress: pytest.fail("made again"))
    assert append_parts(initrd, [part], lines.append) == made
    assert append_parts(initrd, [], lines.append) == initrd


def test_devices_bring_their_modules_and_parts() -> None:
    options = GuestOptions(device=("echo", "echo", "heartbeat"))
    assert guest_parts.parts_of(options) == (guest_parts.UIO,)
    assert features(options) == ("uio",)
    assert features(GuestOptions()) == ()
