"""Writes the corpus's well-formed seeds, small files of our own making: python -m tests.fuzz.seeds.

Mutations of a good file get further into a parser than noise does.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from pathlib import Path

import lz4.block
import zstandard

from pyvmm.gdb.packets import frame
from pyvmm.images.cpio import CpioWriter
from tests.fuzz.targets.file_kernels import MAGICS
from tests.support.sample_kernels import bzimage, elf, note
from tests.support.tiny_multiboot import elf32, flat

CORPUS = Path(__file__).parent / "corpus"

TOML = """memory = "1G,max=2G,min=256M,buffer=20%"
cpus = 2
image = "debian-6.12"
trace = ["hv_balloon_*", "!vmbus_*"]
timeout = 1.5
no-reboot = true
console = "none"
mem-backend = "file=/x,prealloc=on"
command = ["uname", "-a"]
"""
FAULTS = """message.out:change,type=OPEN_RESULT,channel=hv-balloon,to.status=5,once,state=a,new=b
packet.out:insert,message=UNBALLOON_REQUEST,at=16,bytes=00ff,length=-8,place=before,after=3,count=2
index.out:insert,ring=host,word=write,to.ring=guest,to.word=mask,to.value=0x10
discard.out:fail,errno=ENOMEM
event.out:delay,seconds=0.5
torndown-withheld,channel=heartbeat
"""
FAULT_FILE = """[[rule]]
point = "message.out"
action = "change"
type = "OPEN_RESULT"
once = true
to = { status = 5 }
[[rule]]
fault = "torndown-withheld"
after = 1
"""
QMP = b"""{"execute":"balloon","arguments":{"value":268435456},"id":[1,{"a":null}]}{"execute":"query-qmp-schema"}
{'execute': 'x-execute', 'arguments': {'command': 'a\\u00e4"', 'timeout': 3}}{"execute":"device_add","arguments":
{"driver":"heartbeat","id":"x"}}{"execute":"human-monitor-command","arguments":{"command-line":"info qtree"}}"""
CHROME = b"""[
{"name": "thread_name", "ph": "M", "pid": 1, "tid": 2, "args": {"name": "loop"}},
{"name": "machine.memory", "ph": "i", "pid": 1, "tid": 2, "ts": 5.5, "args": {"actual": 1, "resident": 2}},
{"name": "vmbus_open_channel", "ph": "i", "pid": 1, "tid": 2, "ts": 9, "args": {"chan_id": 1}}
]
"""
TRACE = b"""{"time": 1.5, "event": "trace.started", "thread": "MainThread", "machine": "vm", "wall_clock": "x"}
{"time": 2, "event": "balloon.target_set", "current": 131072, "target": 65536, "reason": ""}
{"time": 2.5, "event": "vmbus_recv_message", "type": 5, "size": 12}
{"time": 3, "event": "machine.exit_count", "vcpu": 0, "exit": "io", "count": 77}
"""

UNITTESTS = b"""[x2apic]
file = apic.flat
smp = 2
qemu_params = -cpu qemu64,+x2apic,+tsc-deadline -m 2048 -device hyperv-testdev
arch = x86_64
timeout = 30s
groups = apic nodefault
check = /sys/module/kvm/parameters/enable_pmu=Y

[kvmclock_test]
file = kvmclock_test.flat
test_args = "10000000 `date +%s`"
extra_params = \"\"\"-machine pit=off \\
-enable-kvm\"\"\"
"""
GDB = b"""qSupported:swbreak+;hwbreak+
qXfer:features:read:target.xml:0,ffb
Hg2
g
m1000,40
M1000,2:0a0b
Z0,1000,1
Z2,1008,8
vCont;s:1;c
vCont;r1000,1010:2
?
qfThreadInfo
qThreadExtraInfo,1
qRcmd,696e666f206e616d65
P10=0000000000000000
z0,1000,1
D"""
COMMANDS = b"""source_drivers/hv/hv_balloon.o := /linux/drivers/hv/hv_balloon.c
deps_drivers/hv/hv_balloon.o := \\
    $(wildcard include/config/MEMORY_HOTPLUG) \\
  include/linux/kernel.h \\
"""


def _packed(data: bytes) -> list[bytes]:
    block = lz4.block.compress(data, store_size=False)
    return [
        gzip.compress(data, mtime=0),
        lzma.compress(data),
        lzma.compress(data, format=lzma.FORMAT_ALONE),
        bz2.compress(data),
        b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block + struct.pack("<I", len(data)),
        zstandard.ZstdCompressor().compress(data),
        b"\x7fELF" + data,
    ]


def seeds() -> dict[str, list[bytes]]:
    """Target -> inputs."""
    kernel = elf(
        [(0x1000000, b"\x90" * 64, 0x2000), (0x1200000, b"data" + bytes(60), 0x3000)],
        entry=0x1000000,
        notes=note(b"GNU\0", 3, b"build") + note(b"Xen\0", 18, struct.pack("<Q", 0x1000004)),
    )
    archive = CpioWriter()
    archive.file("a/b", b"text")
    archive.symlink("c", "a/b")
    packed = _packed(kernel)
    return {
        "file_packed": [bytes([number]) + each[len(MAGICS[number]) :] for number, each in enumerate(packed)],
        "file_bzimage_header": [bzimage(packed[0])[:1600]],
        "file_bzimage_payload": packed,
        "file_vmlinux": [kernel[24:]],
        "file_module": [kernel],
        "file_cpio": [archive.build()[:900]],
        "file_toml": [TOML.encode(), *(line.encode() + b"\n" for line in TOML.splitlines())],
        "file_sizes": [
            b"512M",
            b"1.5G,max=2G,min=64M,buffer=20%",
            b"0x20000000",
            b"file=/x,prealloc=on,numa=0",
            b"web",
        ],
        "file_qmp": [QMP],
        "file_kbuild_commands": [COMMANDS],
        "file_json": [b'{"socket": "/x", "pid": 1, "argv": ["pyvmm"], "started": 1.5}'],
        "file_trace": [TRACE, CHROME],
        "file_trace_json": [TRACE],
        "file_trace_chrome": [CHROME[2:]],
        "file_trace_text": [b"channel #1 gpadl #925200 target vp 0", b"0xe1e10 #7 vp 0, 3 -> Idle"],
        "file_gdb": [b"+" + b"".join(map(frame, GDB.splitlines())) + b"\x03-", frame(b"X1000,3:a}\x03b")],
        "file_gdb_packets": [GDB],
        "file_multiboot": [elf32(b"\xf4")[24:], flat(b"\xf4")[11:], kernel[24:]],
        "file_kut_suite": [UNITTESTS],
        "file_fault_rules": [each.encode() for each in FAULTS.splitlines()],
        "file_fault_file": [FAULT_FILE.encode()],
        "file_agent": [b"out 1 YQ==\nerr 1 Yg==\nexit 1 0\nready 2 6.12\nerror x\n"],
    }


def main() -> None:
    for name, inputs in seeds().items():
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(inputs):
            (CORPUS / name / f"seed-{number}").write_bytes(data)


if __name__ == "__main__":
    main()
