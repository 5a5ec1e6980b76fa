"""Where a kernel starts a module, and what the machine is told of one that has yet to come."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pyvmm.cover import boot
from pyvmm.cover.boot import KERNEL_MAP, arrival, find_calls
from pyvmm.cover.program import Program
from pyvmm.cover.store import load_program
from pyvmm.errors import ConfigError
from pyvmm.images.catalog import find_image
from pyvmm.kallsyms import NoSymbolsError, Tables
from tests.support.sample_code import assemble
from tests.support.tiny_kernel import GPA, TEXT, vmlinux

START = KERNEL_MAP + GPA
CODE = START + 7 * len(TEXT)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nop; call f; jmp f; call elsewhere; f: ret"""
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    code = b"\x90\xe8" + struct.pack("<i", 10) + b"\xe9" + struct.pack("<i", 5) + b"\xe8\1\0\0\0" + b"\xc3"
    (tmp_path / "vmlinux").write_bytes(vmlinux(code))
    return tmp_path / "vmlinux"


def symbols(monkeypatch: pytest.MonkeyPatch, **named: int) -> None:
    tables = Tables(list(named.values()), list(named), "t" * len(named))
    monkeypatch.setattr(boot, "read_kallsyms", lambda data, virtual: tables)


def test_calls_and_jumps_to_it_are_found_and_kept(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    symbols(monkeypatch, load_module=CODE, do_init_module=CODE + 16)
    assert find_calls(kernel) == [CODE + 1, CODE + 6]
    monkeypatch.setattr(boot, "_search", None)
    assert find_calls(kernel) == [CODE + 1, CODE + 6]


def test_a_kernel_that_cannot_be_read_is_one_line(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    symbols(monkeypatch, load_module=CODE)
    with pytest.raises(ConfigError, match="vmlinux: it has no do_init_module: built without modules"):
        find_calls(kernel)
    symbols(monkeypatch, do_init_module=CODE + 99)
    with pytest.raises(ConfigError, match="vmlinux: nothing in it calls do_init_module"):
        find_calls(kernel)

    def none(data: bytes, virtual: object) -> Tables:
        raise NoSymbolsError("no table of kernel symbols")

    monkeypatch.setattr(boot, "read_kallsyms", none)
    with pytest.raises(ConfigError, match="vmlinux: no table of kernel symbols"):
        find_calls(kernel)
    kernel.write_bytes(b"MZ" + bytes(1000))
    with pytest.raises(ConfigError, match="not an ELF kernel"):
        find_calls(kernel)
    with pytest.raises(ConfigError, match="nothing: No such file"):
        find_calls(kernel.parent / "nothing")


def test_a_module_is_found_by_its_name_and_laid_out_as_the_kernel_does(tmp_path: Path) -> None:
    program: Program = load_program(assemble(tmp_path))
    found = arrival(program)
    assert found is not None and program.loading is not None
    assert (found.name, found.name_at, found.size) == ("sample", 24, 64)
    places = {program.sections[number]: at for number, at in program.loading.sections.items()}
    assert places[".text"] == 0 and ".init.text" not in places
    cold = next(n for n, block in enumerate(program.blocks) if block.function == "start" and "panic" in
                " ".join(text for _, _, text in program.listing()[n]))  # fmt: skip
    site = found.sites[cold]
    assert site is not None and site.address >= places[".text.unlikely"] > 0
    assert len(found.exits) == 1


def test_a_built_in_module_does_not_arrive(tmp_path: Path) -> None:
    program = load_program(assemble(tmp_path))
    program.loading = None
    assert arrival(program) is None


@pytest.mark.parametrize("kernel", ["debian-6.1", "debian-6.12"])
def test_debians_kernels_start_modules_at_one_place(kernel: str) -> None:
    try:
        image = find_image(kernel, build=False)
    except ConfigError as error:
        pytest.skip(str(error))
    (call,) = find_calls(image.vmlinux)
    assert call > KERNEL_MAP
