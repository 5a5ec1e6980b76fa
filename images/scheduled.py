"""The guest program that runs another one as a real-time task, which this busybox cannot do (no chrt).

    realtime PROGRAM ARGUMENT...    SCHED_RR, priority 1

PROGRAM is a path. Linux lets a real-time task use a part of the memory that it keeps free (`min_free_kbytes`): a
quarter, or half in newer ones (mm/page_alloc.c, gfp_to_alloc_flags()). If commands use up a guest's memory, some is
thus left for its agent, and the agent's allocations do not invoke the OOM killer. `serve` makes commands ordinary
tasks.
"""

from __future__ import annotations

import struct

from pyvmm.images.static_elf import static_elf

SCHED_RR = 2


def program(policy: int, priority: int) -> bytes:
    """Build a static ELF program. If the class is refused, the other program runs all the same."""
    code = b"".join(
        [
            bytes.fromhex("4c8b2424"),  # mov r12, [rsp]               argc
            bytes.fromhex("4c8d6c2410"),  # lea r13, [rsp + 16]          &argv[1]
            bytes.fromhex("4e8d74e410"),  # lea r14, [rsp + r12*8 + 16]  envp
            b"\x6a" + struct.pack("B", priority),  # push priority       struct sched_param
            bytes.fromhex("b890000000"),  # mov eax, 144                 sched_setscheduler
            bytes.fromhex("31ff"),  # xor edi, edi                       this process
            b"\xbe" + struct.pack("<I", policy),  # mov esi, policy
            bytes.fromhex("4889e2"),  # mov rdx, rsp
            bytes.fromhex("0f05"),  # syscall
            bytes.fromhex("b83b000000"),  # mov eax, 59                  execve
            bytes.fromhex("498b7d00"),  # mov rdi, [r13]
            bytes.fromhex("4c89ee"),  # mov rsi, r13
            bytes.fromhex("4c89f2"),  # mov rdx, r14
            bytes.fromhex("0f05"),  # syscall
            bytes.fromhex("b83c000000"),  # mov eax, 60                  exit: there is no such program
            bytes.fromhex("bf7f000000"),  # mov edi, 127
            bytes.fromhex("0f05"),  # syscall
        ]
    )
    return static_elf(code)


PROGRAM = program(SCHED_RR, 1)
