"""The guest program that runs one command for the agent and passes its output on.

    serve ID FILE PROGRAM ARGUMENT...

PROGRAM, a path, runs in a session of its own, as an ordinary task (images/scheduled.py) that the OOM killer may
choose. What it writes goes to descriptor 4, the agent's port: each piece as one line "out ID base64" or "err ID
base64" (pyvmm/machine/agent_protocol.py). FILE holds its process id meanwhile. The status is the program's, 128 + n
for signal n; 126 without memory for a process, 127 without PROGRAM.

A shell can do the same, with dd and base64 in a loop: 18 forks for a command, each 5 ms or more in an emulated host.

Each line of LISTING is machine code and its source (GNU as, Intel syntax), which a test assembles. To change it,
change the source, and take the code from `as -al`.
"""

from __future__ import annotations

from pyvmm.images.static_elf import static_elf

LISTING = """\
4989e4              mov r12, rsp                          # argc, argv, envp
4881ec00000200      sub rsp, 0x20000
4889e5              mov rbp, rsp                          # 0: two struct pollfd; 16, 24: pipes; 32: status
488d7d10            lea rdi, [rbp + 16]
e8c6000000          call pipe
488d7d18            lea rdi, [rbp + 24]
e8bd000000          call pipe
8b4510              mov eax, [rbp + 16]
894500              mov [rbp], eax
8b4518              mov eax, [rbp + 24]
894508              mov [rbp + 8], eax
c7450401000000      mov dword ptr [rbp + 4], 1            # POLLIN
c7450c01000000      mov dword ptr [rbp + 12], 1
b83a000000          mov eax, 58                           # vfork
0f05                syscall
85c0                test eax, eax
0f85a1000000        jnz parent
b870000000          mov eax, 112                          # the command's process: setsid
0f05                syscall
6a00                push 0
4889e2              mov rdx, rsp
31f6                xor esi, esi
31ff                xor edi, edi
b890000000          mov eax, 144                          # sched_setscheduler(0, SCHED_OTHER, {0})
0f05                syscall
488d3d28020000      lea rdi, [rip + score]
be01000000          mov esi, 1
b802000000          mov eax, 2                            # open(score, O_WRONLY)
0f05                syscall
89c7                mov edi, eax
488d352c020000      lea rsi, [rip + zero]
ba01000000          mov edx, 1
b801000000          mov eax, 1                            # write "0"; an error of open is one of write
0f05                syscall
b803000000          mov eax, 3                            # close
0f05                syscall
8b7d14              mov edi, [rbp + 20]
be01000000          mov esi, 1
b821000000          mov eax, 33                           # dup2(pipe, 1)
0f05                syscall
8b7d1c              mov edi, [rbp + 28]
be02000000          mov esi, 2
b821000000          mov eax, 33                           # dup2(pipe, 2)
0f05                syscall
bf04000000          mov edi, 4
b803000000          mov eax, 3                            # close the agent's port
0f05                syscall
498d742420          lea rsi, [r12 + 32]                   # &argv[3]
488b3e              mov rdi, [rsi]
498b0424            mov rax, [r12]
498d54c410          lea rdx, [r12 + rax * 8 + 16]         # envp
b83b000000          mov eax, 59                           # execve
0f05                syscall
bf7f000000          mov edi, 127
                    exit:
b83c000000          mov eax, 60
0f05                syscall
                    pipe:
be00000800          mov esi, 0x80000
b825010000          mov eax, 293                          # pipe2(rdi, O_CLOEXEC)
0f05                syscall
c3                  ret
                    parent:
bf7e000000          mov edi, 126
78e5                js exit                               # no memory for a process
4189c5              mov r13d, eax                         # the command's process id
8b7d14              mov edi, [rbp + 20]
b803000000          mov eax, 3                            # close the ends for writing
0f05                syscall
8b7d1c              mov edi, [rbp + 28]
b803000000          mov eax, 3
0f05                syscall
498b7c2418          mov rdi, [r12 + 24]
be41020000          mov esi, 0x241
ba80010000          mov edx, 0x180
b802000000          mov eax, 2                            # open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0600)
0f05                syscall
89c7                mov edi, eax
488d7540            lea rsi, [rbp + 64]
c6060a              mov byte ptr [rsi], 10
4489e8              mov eax, r13d
b90a000000          mov ecx, 10
                    digit:
48ffce              dec rsi
31d2                xor edx, edx
f7f1                div ecx
80c230              add dl, 48
8816                mov [rsi], dl
85c0                test eax, eax
75f0                jnz digit
488d5541            lea rdx, [rbp + 65]
4829f2              sub rdx, rsi
b801000000          mov eax, 1                            # write the process id and a newline
0f05                syscall
b803000000          mov eax, 3                            # close
0f05                syscall
41be02000000        mov r14d, 2                           # streams that have not ended
                    wait:
4889ef              mov rdi, rbp
be02000000          mov esi, 2
baffffffff          mov edx, -1
b807000000          mov eax, 7                            # poll
0f05                syscall
31db                xor ebx, ebx                          # 0: stdout, 1: stderr
                    stream:
66837cdd0600        cmp word ptr [rbp + rbx * 8 + 6], 0   # revents
0f84bc000000        je next
8b7cdd00            mov edi, [rbp + rbx * 8]
488db500100000      lea rsi, [rbp + 0x1000]
ba00c00000          mov edx, 49152
31c0                xor eax, eax                          # read
0f05                syscall
4885c0              test rax, rax
7f10                jg data
c744dd00ffffffff    mov dword ptr [rbp + rbx * 8], -1     # which poll leaves out
41ffce              dec r14d
e993000000          jmp next
                    data:
4989c0              mov r8, rax                           # bytes left
66c704060000        mov word ptr [rsi + rax], 0           # zeros for an incomplete group of three
488dbd00d00000      lea rdi, [rbp + 0xd000]               # the line
488d15cb000000      lea rdx, [rip + words]
8b049a              mov eax, [rdx + rbx * 4]
ab                  stosd
498b542410          mov rdx, [r12 + 16]                   # argv[1]
                    number:
8a02                mov al, [rdx]
48ffc2              inc rdx
84c0                test al, al
7403                jz space
aa                  stosb
ebf4                jmp number
                    space:
b020                mov al, 32
aa                  stosb
4c8d0dce000000      lea r9, [rip + alphabet]
                    group:
8b06                mov eax, [rsi]
0fc8                bswap eax                             # three bytes, the first one on top
4883c603            add rsi, 3
b904000000          mov ecx, 4
                    sextet:
c1c006              rol eax, 6
89c2                mov edx, eax
83e23f              and edx, 63
418a1411            mov dl, [r9 + rdx]
8817                mov [rdi], dl
48ffc7              inc rdi
ffc9                dec ecx
75eb                jnz sextet
4983e803            sub r8, 3
7fd8                jg group
740a                je line
                    pad:
42c604073d          mov byte ptr [rdi + r8], 61           # "=" for each byte that the last group lacks
49ffc0              inc r8
75f6                jnz pad
                    line:
b00a                mov al, 10
aa                  stosb
488db500d00000      lea rsi, [rbp + 0xd000]
4889fa              mov rdx, rdi
4829f2              sub rdx, rsi
                    write:
bf04000000          mov edi, 4
b801000000          mov eax, 1                            # write to the agent's port
0f05                syscall
4885c0              test rax, rax
7e08                jle next
4801c6              add rsi, rax
4829c2              sub rdx, rax
75e7                jnz write
                    next:
ffc3                inc ebx
83fb02              cmp ebx, 2
0f822dffffff        jb stream
4585f6              test r14d, r14d
0f850effffff        jnz wait
4489ef              mov edi, r13d
488d7520            lea rsi, [rbp + 32]
31d2                xor edx, edx
4531d2              xor r10d, r10d
b83d000000          mov eax, 61                           # wait4
0f05                syscall
498b7c2418          mov rdi, [r12 + 24]
b857000000          mov eax, 87                           # unlink(argv[2])
0f05                syscall
8b7d20              mov edi, [rbp + 32]
89f8                mov eax, edi
c1ef08              shr edi, 8
83e07f              and eax, 127
0f845afeffff        jz exit                               # its status
8db880000000        lea edi, [rax + 128]                  # ended by a signal
e94ffeffff          jmp exit
"""

WORDS = b"out err "
SCORE = b"/proc/self/oom_score_adj\0"
ZERO = b"0"
ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
DATA = {"words": WORDS, "score": SCORE, "zero": ZERO, "alphabet": ALPHABET}
"""What follows the code, by label."""

WIDTH = 20  # columns of machine code


def source() -> str:
    """Return the source, for an assembler."""
    code = [line[WIDTH:] for line in LISTING.splitlines()]
    data = [f"{label}: .byte {','.join(map(str, data))}" for label, data in DATA.items()]
    return "\n".join([".intel_syntax noprefix", *code, *data, ""])


def machine_code() -> bytes:
    """Return the machine code."""
    return bytes.fromhex("".join(line[:WIDTH] for line in LISTING.splitlines())) + b"".join(DATA.values())


PROGRAM = static_elf(machine_code())
