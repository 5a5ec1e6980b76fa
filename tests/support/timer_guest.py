"""A tiny kernel whose synthetic timer interrupts it, which notes when: in a whole machine, on any /dev/kvm.

    with TimerGuest(tmp_path, engine="user", period=10_000) as guest:
        guest.run(until=100)
        print(guest.lateness())       # of each interrupt, in 100 ns

The code, in 32-bit mode, without paging: IDT of one handler, x2APIC, the MSRs of a table, and then it halts. The
handler keeps the TSC, frees the slot of SINT2 (writing EOM if asked to), sets a one-shot timer anew, ends the
interrupt, and halts again; without IRET, which the instruction emulator of KVM does not know in protected mode:

    start:    mov esp, STACK; lgdt; jmp 8:entered; load data segments; fill 256 gates; lidt
              rdmsr 0x1B; or eax, 0xC00; wrmsr                      x2APIC on
    msrs:     mov ecx, [esi]; jecxz done; mov eax, [esi+4]; mov edx, [esi+8]; wrmsr; add esi, 12; jmp msrs
    done:     mov edi, RECORDS; mov ebp, [table]; call next
    idle:     mov esp, STACK; sti; hlt; jmp idle
    next:     test ebp, ebp; jz 1f; rdmsr TIME_REF_COUNT; add eax, ebp; adc edx, 0; mov [edi+8], edx:eax
              wrmsr STIMER0_COUNT; 1: ret
    handler:  rdtsc; mov [edi], edx:eax; add edi, 16; and edi, 0x2FFFFF; inc [COUNTER]; mov [SIMP+0x200], 0
              test [SIMP+0x205], 1; jz 2f; wrmsr EOM; 2: call next; wrmsr 0x80B; jmp idle
"""

from __future__ import annotations

import time
from pathlib import Path
from struct import pack, unpack
from typing import Any, Self

from pyvmm.hyperv.tlfs import Msr
from pyvmm.loop import Loop
from pyvmm.machine.config import MachineConfig
from pyvmm.machine.machine import Machine
from tests.support.flooded import kernel

CODE = bytes.fromhex(
    "bc000018 000f0115 00011000 ea130010 000800b8 10000000 8ed88ed0 8ec0bf00"
    "001900b9 00010000 b89d0008 008907c7 4704008e 100083c7 08e2ed0f 011d0601"
    "1000b91b 0000000f 320d000c 00000f30 be100110 008b0ee3 0d8b4604 8b56080f"
    "3083c60c ebefbf00 0020008b 2d0c0110 00e80900 0000bc00 001800fb f4ebf785"
    "ed7419b9 20000040 0f3201e8 83d20089 47088957 0cb9b100 00400f30 c30f3189"
    "07895704 83c71081 e7ffff2f 00ff0504 001f00c7 0500021a 00000000 00f60505"
    "021a0001 740bb984 00004031 c031d20f 30e8a9ff ffffb90b 08000031 c031d20f"
    "30eb938d 74260090 00000000 00000000 ffff0000 009bcf00 ffff0000 0093cf00"
    "1700e800 1000ff07 00001900"
)
RECORDS, COUNTER, SIMP, TSC_PAGE = 0x200000, 0x1F0004, 0x1A0000, 0x1C0000
MEMORY = 32 << 20
LIMIT = 60.0
VECTOR = 0x40
_SPURIOUS_VECTOR = 0x80F
ENABLE, PERIODIC, AUTO, DIRECT, SINT2 = 1, 2, 8, 1 << 12 | VECTOR << 4, 2 << 16


def timer_kernel(period: int, *, direct: bool = True, one_shot: bool = False) -> bytes:
    """Return the kernel as an ELF file."""
    config = (AUTO if one_shot else ENABLE | PERIODIC) | (DIRECT if direct else SINT2)
    msrs = [
        (_SPURIOUS_VECTOR, 0x1FF),
        (Msr.REFERENCE_TSC, TSC_PAGE | 1),
        (Msr.SIMP, SIMP | 1),
        (Msr.SCONTROL, 1),
        (Msr.SINT0 + 2, VECTOR),
        (Msr.STIMER0_CONFIG, config),
    ]
    if not one_shot:
        msrs.append((Msr.STIMER0_COUNT, period))
    table = pack("<I", period if one_shot else 0) + b"".join(pack("<IQ", msr, value) for msr, value in msrs)
    return kernel(CODE + table + bytes(4))


class TimerGuest:
    """The machine. `period` in 100 ns; with `one_shot` the guest sets its timer anew after each interrupt."""

    def __init__(
        self, folder: Path, engine: str, period: int, *, direct: bool = True, one_shot: bool = False, **options: Any
    ) -> None:
        self.period, self.one_shot = period, one_shot
        path = folder / "timer-kernel"
        path.write_bytes(timer_kernel(period, direct=direct, one_shot=one_shot))
        words = ("+stimer", "+stimer-direct") if direct else ("+stimer",)
        values: dict[str, Any] = {
            "memory": MEMORY,
            "entry": "pvh",
            "engine": engine,
            "enlightenments": words,
        } | options
        self.machine = Machine(MachineConfig(kernel=path, **values), Loop())

    def __enter__(self) -> Self:
        self.machine.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self.machine.close()
        self.machine.loop.close()

    @property
    def interrupts(self) -> int:
        """How many interrupts the guest has had."""
        return int(unpack("<I", self.machine.memory.read(COUNTER, 4))[0])

    def run(self, until: int, seconds: float = LIMIT) -> None:
        """Run the machine until the guest has had so many interrupts. AssertionError after `seconds`."""
        limit = time.monotonic() + seconds
        while self.interrupts < until:
            assert time.monotonic() < limit, f"{self.interrupts} interrupts of {until} in {seconds:.0f} s"
            assert self.machine.outcome is None, self.machine.outcome
            self.machine.loop.step(0.05)

    def times(self) -> list[int]:
        """When each interrupt came, in reference time: by the TSC, and the guest's reference page."""
        _, _, scale, offset = unpack("<IIQq", self.machine.memory.read(TSC_PAGE, 24))
        count = min(self.interrupts, 60_000)
        words: tuple[int, ...] = unpack(f"<{2 * count}Q", self.machine.memory.read(RECORDS, 16 * count))
        return [(tsc * scale >> 64) + offset for tsc in words[::2]]

    def lateness(self) -> list[int]:
        """How late each interrupt came, in 100 ns: after the time that was set, or, of a periodic timer, later in the
        period than the earliest.
        """
        times = self.times()
        if self.one_shot:
            count = len(times)
            words: tuple[int, ...] = unpack(f"<{2 * count}Q", self.machine.memory.read(RECORDS, 16 * count))
            return [came - due for came, due in zip(times, words[1::2], strict=True)]
        places = sorted(came % self.period for came in times)
        gaps = [after - before for before, after in zip(places, [*places[1:], places[0] + self.period], strict=True)]
        beat = places[(gaps.index(max(gaps)) + 1) % len(places)]  # the first after the longest silence in the period
        return [(came - beat) % self.period for came in times]
