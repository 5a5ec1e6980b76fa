"""A kernel and an initramfs to compare drivers with: busybox, an init, and each contender's modules."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pyvmm.images.busybox import applets, busybox
from pyvmm.images.cpio import CpioWriter
from pyvmm.images.initramfs import FOLDERS
from pyvmm.images.kernel_package import open_package
from pyvmm.images.packages import download, find_package
from pyvmm.images.payload import unpack as unpack_kernel
from pyvmm.paths import cache_folder, make_folder, write_private


def prepare(
    name: str, package: str, init: str, modules: Mapping[str, Sequence[str]], files: Mapping[str, bytes]
) -> dict[str, str]:
    """Make kernel and initramfs in the cache's folder `name`; return what a run needs to know.

    `package` is a pattern of a Debian kernel's package, `modules` are each contender's, `files` other files by path.
    The result has the paths of kernel, vmlinux and initrd, QEMU's program, options, environment and label, and for
    each contender the names of its modules in the order of loading.
    """
    from tests.bench.qemu10 import find_qemu

    own = open_package(download(find_package(package, ("bookworm",))), None, print)
    assert own.modules is not None
    folder = cache_folder("bench", f"{name}-{own.release}")
    make_folder(folder)
    archive = CpioWriter()
    for each in FOLDERS:
        archive.folder(each)
    archive.character_device("dev/console", 5, 1)
    program = busybox(print)
    archive.file("bin/busybox", program.read_bytes(), 0o755)
    for applet in sorted(set(applets(program)) - {"busybox"}):
        archive.symlink(f"bin/{applet}", "busybox")
    archive.file("init", init.encode(), 0o755)
    facts: dict[str, str] = {}
    known: set[str] = set()
    for contender, wanted in modules.items():
        order = own.modules.load_order(list(wanted))
        facts[contender] = ",".join(module for module, _ in order)
        for module, data in order:
            if module not in known:
                archive.file(f"lib/modules/{module}.ko", data)
                known.add(module)
    for path, content in files.items():
        archive.folder(path.rpartition("/")[0])
        archive.file(path, content, 0o755)
    write_private(folder / "initrd", archive.build())
    vmlinux = folder / "vmlinux"
    if not vmlinux.exists():
        write_private(vmlinux, unpack_kernel(own.kernel.read_bytes(), "kernel"))
    qemu = find_qemu(print)
    return facts | {
        "kernel": str(own.kernel),
        "vmlinux": str(vmlinux),
        "initrd": str(folder / "initrd"),
        "program": qemu.program,
        "options": json.dumps(qemu.options),
        "environment": json.dumps(qemu.environment),
        "label": qemu.label,
    }
