"""ACPI tables: sums, addresses, contents, and what Intel's disassembler makes of them."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from pyvmm.address_map import ACPI_TABLES, IO_APIC, LOCAL_APIC
from pyvmm.errors import ConfigError
from pyvmm.firmware import aml
from pyvmm.firmware.acpi import AcpiConfig, build_acpi


def tables(config: AcpiConfig) -> dict[str, bytes]:
    return build_acpi(config, ACPI_TABLES.start, ACPI_TABLES.size).tables


def disassemble(table: bytes, name: str, folder: Path) -> str:
    if shutil.which("iasl") is None:
        pytest.skip("iasl (package acpica-tools) is not installed")
    path = folder / f"{name}.dat"
    path.write_bytes(table)
    done = subprocess.run(["iasl", "-d", str(path)], capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "rror" not in output, output
    return path.with_suffix(".dsl").read_text()


@pytest.mark.parametrize("cpus", [1, 2, 255, 300])
def test_sums_are_zero_and_pointers_lead_to_tables(cpus: int) -> None:
    built = build_acpi(AcpiConfig.for_cpus(cpus), ACPI_TABLES.start, ACPI_TABLES.size)

    def at(gpa: int, signature: bytes) -> bytes:
        offset = gpa - ACPI_TABLES.start
        (length,) = struct.unpack_from("<I", built.data, offset + 4)
        table = built.data[offset : offset + length]
        assert table[:4] == signature
        if signature != b"FACS":
            assert sum(table) & 0xFF == 0
        return table

    rsdp = built.data[:36]
    assert built.rsdp_gpa == ACPI_TABLES.start
    assert rsdp[:8] == b"RSD PTR "
    assert sum(rsdp[:20]) & 0xFF == sum(rsdp) & 0xFF == 0
    xsdt = at(struct.unpack_from("<Q", rsdp, 24)[0], b"XSDT")
    fadt_gpa, madt_gpa = struct.unpack_from("<2Q", xsdt, 36)
    fadt = at(fadt_gpa, b"FACP")
    at(madt_gpa, b"APIC")
    facs, dsdt = struct.unpack_from("<II", fadt, 36)
    assert facs % 64 == 0
    at(facs, b"FACS")
    at(dsdt, b"DSDT")
    assert struct.unpack_from("<Q", fadt, 140) == (dsdt,)


def test_dsdt_shows_the_vmbus_below_a_window_and_no_s4(tmp_path: Path) -> None:
    text = disassemble(tables(AcpiConfig())["DSDT"], "dsdt", tmp_path)
    module = text.index('"ACPI0004"')
    assert module < text.index("DWordMemory (ResourceProducer") < text.index('"VMBUS"')
    assert "_S5" in text
    assert "_S4" not in text
    bus = text[text.index("Device (VMBS)") :]
    for name in ("_UID", "_DDN", "_STA, 0x0F", "_CRS"):
        assert name in bus[: bus.index("}\n        }")]


def test_dsdt_without_vmbus_has_none(tmp_path: Path) -> None:
    assert "VMBUS" not in disassemble(tables(AcpiConfig(vmbus=False))["DSDT"], "dsdt", tmp_path)


def test_serial_ports_are_described_when_asked_for(tmp_path: Path) -> None:
    text = disassemble(tables(AcpiConfig(com_ports=(1, 2)))["DSDT"], "dsdt", tmp_path)
    assert text.count('EisaId ("PNP0501")') == 2
    assert "0x02F8" in text


def test_a_serial_port_in_memory_is_described_there(tmp_path: Path) -> None:
    config = AcpiConfig.for_cpus(1, com_windows=(0xFEC10FFF, 0xFEC12FFF))
    text = disassemble(tables(config)["DSDT"], "dsdt", tmp_path)
    port = text[text.index("Device (COM1)") :]
    assert port.index("Memory32Fixed (ReadWrite") < port.index("0xFEC10FFF") < port.index("IRQNoFlags")
    assert port.index("Device (COM2)") < port.index("0xFEC12FFF")
    assert "0x03F8" not in text


def test_window_lies_in_the_hole_clear_of_the_apics() -> None:
    gpa, size = AcpiConfig().vmbus_window
    assert size >= 1 << 20
    assert gpa >= 3 << 30
    assert gpa + size <= min(IO_APIC.start, LOCAL_APIC.start)


def field(text: str, name: str) -> str:
    (line,) = [line for line in text.splitlines() if f" {name} :" in line]
    return line.rpartition(": ")[2].split(" ")[0]


def test_fadt_says_what_the_machine_has(tmp_path: Path) -> None:
    text = disassemble(tables(AcpiConfig())["FACP"], "facp", tmp_path)
    expected = {
        "SCI Interrupt": "0009",
        "SMI Command Port": "00000000",
        "PM1A Event Block Address": "00000600",
        "PM1A Control Block Address": "00000604",
        "PM Timer Block Address": "00000000",
        "PM Timer Block Length": "00",
        "8042 Present on ports 60/64 (V2)": "0",
        "VGA Not Present (V4)": "1",
        "CMOS RTC Not Present (V5)": "0",
        "Reset Register Supported (V2)": "1",
        "Hardware Reduced (V5)": "0",
        "Control Method Power Button (V1)": "0",
        "RTC wake not in fixed reg space (V1)": "0",
        "Value to cause reset": "06",
    }
    assert {name: field(text, name) for name in expected} == expected


def test_fadt_follows_its_options(tmp_path: Path) -> None:
    text = disassemble(
        tables(AcpiConfig(pm_timer=True, i8042=True, rtc=False, reset_port=0))["FACP"], "facp", tmp_path
    )
    assert field(text, "PM Timer Block Address") == "00000608"
    assert field(text, "8042 Present on ports 60/64 (V2)") == "1"
    assert field(text, "CMOS RTC Not Present (V5)") == "1"
    assert field(text, "RTC wake not in fixed reg space (V1)") == "1"
    assert field(text, "Reset Register Supported (V2)") == "0"


def test_madt_lists_processors_overrides_and_nmi(tmp_path: Path) -> None:
    text = disassemble(tables(AcpiConfig.for_cpus(2))["APIC"], "apic", tmp_path)
    assert text.count("[Processor Local APIC]") == 2
    assert text.count("[Interrupt Source Override]") == 2
    assert text.count("[Local APIC NMI]") == 1


def test_processors_beyond_254_get_x2apic_entries(tmp_path: Path) -> None:
    text = disassemble(tables(AcpiConfig.for_cpus(257))["APIC"], "apic", tmp_path)
    assert text.count("[Processor Local APIC]") == 255
    assert text.count("[Processor Local x2APIC]") == 2
    assert text.count("[Local x2APIC NMI]") == 1


def test_timer_override_can_be_left_out() -> None:
    assert len(tables(AcpiConfig(timer_override=False))["APIC"]) == len(tables(AcpiConfig())["APIC"]) - 10


def test_more_processors_than_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="processors are more than"):
        build_acpi(AcpiConfig.for_cpus(20000), ACPI_TABLES.start, ACPI_TABLES.size)


@pytest.mark.parametrize("size", [0, 62, 63, 4093, 4094, 70000])
def test_package_length_counts_itself(size: int) -> None:
    data = aml.sized(bytes(size))
    extra = data[0] >> 6
    length = data[0] & 0x3F if extra == 0 else data[0] & 0xF | int.from_bytes(data[1 : 1 + extra], "little") << 4
    assert length == len(data)


def test_integers_take_their_shortest_form() -> None:
    assert [len(aml.integer(value)) for value in (0, 1, 2, 255, 256, 65536, 1 << 32)] == [1, 1, 2, 2, 3, 5, 9]


def test_eisa_ids_match_the_specification() -> None:
    assert aml.eisa_id("PNP0A03") == bytes.fromhex("0c41d00a03")
