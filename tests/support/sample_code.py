"""A kernel module of some functions, assembled by gcc, with the kernel's tables for the sites that it rewrites."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = """
    .text
    .globl start
    .type start, @function
start:
1:  call __fentry__                         # rewritten by ftrace
    test %edi, %edi
    je 3f
2:  call kmalloc                            # the first call
    test %rax, %rax
    jne 4f
    ud2                                     # WARN: runs on
5:  mov $-12, %eax
    jmp 6f
3:  nopw (%rax)                             # a block of one jump label: 5 bytes
    .set label, 3b
4:  lock incl (%rax)
    xor %eax, %eax
6:  ret
    .size start, . - start
    .type trace_event_raw_event_x, @function
trace_event_raw_event_x:
    xor %eax, %eax
    ret
    .size trace_event_raw_event_x, . - trace_event_raw_event_x
    .globl cleanup_module
    .type cleanup_module, @function
cleanup_module:
    push %rbx
    call start
    jmp __stack_chk_fail
    .size cleanup_module, . - cleanup_module
    .section .text.unlikely, "ax", @progbits
    .type start.cold, @function
start.cold:
    mov $1, %edi
    call panic
    .size start.cold, . - start.cold
    .section .init.text, "ax", @progbits
    .type init, @function
init:
    xor %eax, %eax
    ret
    .size init, . - init
    .section __mcount_loc, "a"
    .quad 1b
    .section __bug_table, "a"
    .long 5b - 2 - ., 0
    .short 0, 1
    .section __jump_table, "a"
    .long label - ., 6b - .
    .quad 0
    .section .smp_locks, "a"
    .long 4b - .
    .section .gnu.linkonce.this_module, "aw"
    .skip 24
    .asciz "sample"
    .skip 33
    .section .note.gnu.build-id, "a"
    .long 4, 20, 3
    .ascii "GNU\\0"
    .ascii "0123456789abcdefghij"
"""
BUILD_ID = b"0123456789abcdefghij".hex()


def assemble(folder: Path, name: str = "sample", *, debug: bool = False) -> Path:
    """The module's file; a skip without gcc."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    source, target = folder / f"{name}.s", folder / f"{name}.ko"
    source.write_text(SOURCE.replace("nopw (%rax)", ".byte 0x0f, 0x1f, 0x44, 0, 0"))
    subprocess.run(["gcc", "-c", *(["-g"] if debug else []), str(source), "-o", str(target)], check=True)
    return target
