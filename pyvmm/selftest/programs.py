"""The guest's test programs: static ELF files of some hundred bytes, so that no compiler is needed to make them.

    fault 0..5                    causes a fault in user mode, and dies by its signal
    state128|256|512 DIGIT        holds a pattern in all vector registers over 4,000 exits and system calls; 1: lost
    kexec KERNEL INITRD CMDLINE   loads another kernel and goes on to it; ends with an errno if it cannot

`state` runs CPUID, at which every hypervisor exits, and sched_yield, so that a second one gets the CPU: both the
host's and the guest's kernel save and restore the registers.
"""

from __future__ import annotations

import struct

from pyvmm.images.static_elf import static_elf

FAULTS = {
    0: ("read of address 0", 11),
    1: ("undefined instruction", 4),
    2: ("division by zero", 8),
    3: ("breakpoint", 5),
    4: ("RDMSR in user mode", 11),
    5: ("OUT to the hypercall port in user mode", 11),
}
"""Argument of `fault`: what it does, and the signal that Linux sends for it."""

ROUNDS = 2000
_PATTERN_WORDS = 512  # 2 KiB, the size of 32 registers of 64 bytes
_STORED = 4 * _PATTERN_WORDS  # offset of the second copy from RSP

_FAULT = bytes.fromhex(
    "48 8b 44 24 10"  # mov rax, [rsp + 16]       argv[1]
    "8a 00"  # mov al, [rax]
    "3c 30  74 22"  # cmp al, '0'; je page
    "3c 31  74 1c"  # cmp al, '1'; je opcode
    "3c 32  74 14"  # cmp al, '2'; je divide
    "3c 33  74 0f"  # cmp al, '3'; je trap
    "3c 34  74 04"  # cmp al, '4'; je msr
    "b0 00  e6 ec"  # mov al, 0; out 0xec, al
    "b9 01 00 00 40  0f 32"  # msr: mov ecx, 0x40000001; rdmsr
    "cc"  # trap: int3
    "31 c9  f7 f1"  # divide: xor ecx, ecx; div ecx
    "0f 0b"  # opcode: ud2
    "31 c0  8b 00"  # page: xor eax, eax; mov eax, [rax]
)

_KEXEC = bytes.fromhex(
    "4c 8b 64 24 10  4c 8b 6c 24 18  4c 8b 7c 24 20"  # mov r12, argv[1]; mov r13, argv[2]; mov r15, argv[3]
    "4c 89 e7  31 f6  b8 02 00 00 00  0f 05  49 89 c4"  # r12 = open(r12, O_RDONLY)
    "4c 89 ef  31 f6  b8 02 00 00 00  0f 05  49 89 c5"  # r13 = open(r13, O_RDONLY)
    "4c 89 ff  31 c0  48 c7 c1 ff ff ff ff  f2 ae"  # mov rdi, r15; xor eax, eax; mov rcx, -1; repne scasb
    "48 f7 d1  48 89 ca  4d 89 fa"  # rdx = length of the command line with its zero; mov r10, r15
    "4c 89 e7  4c 89 ee  45 31 c0"  # mov rdi, r12; mov rsi, r13; xor r8d, r8d
    "b8 40 01 00 00  0f 05"  # kexec_file_load
    "48 85 c0  75 16"  # test rax, rax; jnz done
    "bf ad de e1 fe  be 69 19 12 28  ba 43 45 58 45"  # LINUX_REBOOT_MAGIC1, MAGIC2, CMD_KEXEC
    "b8 a9 00 00 00  0f 05"  # reboot
    "48 89 c7  48 f7 df  b8 3c 00 00 00  0f 05"  # done: exit(-rax)
)


def _move(size: int, register: int, offset: int, *, store: bool) -> bytes:
    """Encode movaps or vmovaps between a vector register of `size` bytes and [rsp + offset]."""
    opcode = 0x29 if store else 0x28
    if size == 64:
        assert offset % 64 == 0
        inverted = (~register >> 3 & 1) << 7 | 1 << 6 | 1 << 5 | (~register >> 4 & 1) << 4
        # R of the prefix is bit 3 of the register's number, R' bit 4, both inverted
        prefix = bytes([0x62, inverted | 1, 0x7C, 0x48])
        return prefix + bytes([opcode, 0x44 | (register & 7) << 3, 0x24]) + struct.pack("<b", offset // 64)
    tail = bytes([opcode, 0x84 | (register & 7) << 3, 0x24]) + struct.pack("<i", offset)
    if size == 32:
        return bytes([0xC5, 0x7C if register & 8 else 0xFC]) + tail
    return (b"\x44" if register & 8 else b"") + b"\x0f" + tail


def _state(size: int) -> bytes:
    """The program `state` for vector registers of `size` bytes."""
    registers = 32 if size == 64 else 16
    code = bytes.fromhex(
        "48 8b 44 24 10  44 0f b6 38"  # mov rax, [rsp + 16]; movzx r15d, byte [rax]
        "45 69 ff 01 01 01 01"  # imul r15d, r15d, 0x01010101
        "48 81 ec 00 10 00 00  48 83 e4 c0"  # sub rsp, 4096; and rsp, -64
        "31 c9"  # xor ecx, ecx
        "44 89 3c 8c"  # fill: mov [rsp + rcx*4], r15d
        "45 8d bc 0f 9d 00 00 00"  # lea r15d, [r15 + rcx + 0x9d]
        "ff c1  81 f9 00 02 00 00  72 ea"  # inc ecx; cmp ecx, 512; jb fill
    )
    code += b"".join(_move(size, each, each * size, store=False) for each in range(registers))
    code += b"\x41\xbd" + struct.pack("<I", ROUNDS)  # mov r13d, ROUNDS
    code += bytes.fromhex(
        "31 c0  0f a2"  # again: xor eax, eax; cpuid
        "b8 18 00 00 00  0f 05"  # sched_yield
        "41 ff cd  75 f0"  # dec r13d; jnz again
    )
    code += b"".join(_move(size, each, _STORED + each * size, store=True) for each in range(registers))
    code += bytes.fromhex("48 89 e6  48 8d bc 24") + struct.pack("<i", _STORED)  # mov rsi, rsp; lea rdi, [rsp + ...]
    code += b"\xb9" + struct.pack("<I", registers * size)  # mov ecx, bytes
    return code + bytes.fromhex(
        "f3 a6"  # repe cmpsb
        "0f 95 c0  0f b6 f8"  # setne al; movzx edi, al
        "b8 3c 00 00 00  0f 05"  # exit
    )


PROGRAMS = {
    "fault": static_elf(_FAULT),
    "state128": static_elf(_state(16)),
    "state256": static_elf(_state(32)),
    "state512": static_elf(_state(64)),
    "kexec": static_elf(_KEXEC),
}
"""The programs by name, as in /selftest of the guest."""
