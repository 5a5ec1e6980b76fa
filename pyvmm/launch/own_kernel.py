"""Prepares the boot of a kernel of the user's own: an initramfs with its modules, and notes on what it lacks.

    GuestOptions --open--> images.OwnKernel --select--> modules --initrd_for--> initramfs in the cache
                                            --lacks---> lines for the user, before the boot
                                            --absent--> MachineConfig.absent_drivers, for the message at the end

The result is kept in the cache for the process in the emulated host, to which each file of the tree is far.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.errors import ConfigError
from pyvmm.files import FileError, Shape, load_object
from pyvmm.paths import cache_folder, write_private

if TYPE_CHECKING:
    from pyvmm.images.own_kernel import OwnKernel
    from pyvmm.launch.options import GuestOptions

_RECORD: dict[str, Shape] = {"kernel": str, "initrd": str, "absent": {str: str}}


@dataclass(slots=True)
class BootPlan:
    """The files to boot, `initrd` None for none. `absent`: why the guest lacks a driver, by module; None if unknown
    because the initramfs is the user's own, or the kernel is not Linux.
    """

    kernel: Path
    initrd: Path | None
    absent: dict[str, str] | None = None


def plan_boot(options: GuestOptions, progress: Callable[[str], None], *, cpus: int, grows: bool) -> BootPlan:
    """Find or make the files for a kernel of the user's own. Prints to `progress` what it lacks.

    Raises ConfigError and HostError.
    """
    from pyvmm.images.own_kernel import Selection
    from pyvmm.launch.build import guest_parts

    if options.initrd is not None and options.command:
        raise ConfigError("COMMAND needs pyvmm's own initramfs: leave --initrd out, or boot to your own init")
    if options.initrd is not None and options.module:
        raise ConfigError("--module adds to pyvmm's own initramfs: leave --initrd out, or put the module into yours")
    own = _open(options, progress)
    for note in own.notes:
        progress(f"{own.place}: {note}")
    if options.initrd is not None or not own.release:
        if not own.release and (options.command or options.module or options.modules is not None):
            raise ConfigError(f"{own.place}: not a Linux kernel, so it cannot use pyvmm's initramfs")
        initrd = None if _is_none(options.initrd) else options.initrd
        _tell_lacks(options, own, own.lacks(Selection(), cpus=cpus, grows=grows), progress)
        return _keep(options, BootPlan(own.kernel, initrd))
    if _has_initramfs(own) and not options.command and not options.module:
        progress(f"{own.place}: boots its built-in initramfs (CONFIG_INITRAMFS_SOURCE)")
        return _keep(options, BootPlan(own.kernel, None))
    from pyvmm.images.catalog import initrd_for
    from pyvmm.images.parts import append_parts

    chosen = own.select(tuple(options.module))
    _tell_lacks(options, own, own.lacks(chosen, cpus=cpus, grows=grows), progress)
    initrd = append_parts(initrd_for(own.release, chosen.modules, progress), guest_parts(options), progress)
    return _keep(options, BootPlan(own.kernel, initrd, chosen.absent))


def known_plan(options: GuestOptions) -> BootPlan | None:
    """Return what `plan_boot` has found for the same options just before, in the process outside; None if nothing."""
    try:
        kept = load_object(_record(options), _RECORD)
    except FileError:
        return None
    absent = kept["absent"] if kept.get("known") else None
    return BootPlan(Path(kept["kernel"]), Path(kept["initrd"]) if kept["initrd"] else None, absent)


def _open(options: GuestOptions, progress: Callable[[str], None]) -> OwnKernel:
    from pyvmm.images import kdir, kernel_file, kernel_package
    from pyvmm.images.modules import ModuleTree

    kernel, modules = options.kernel, options.modules
    tree = options.kdir
    if kernel is not None and kernel.is_dir():
        raise ConfigError(f"--kernel {kernel}: a folder; a build tree is --kdir {kernel}")
    if kernel is not None and kernel_package.is_package(kernel):
        own = kernel_package.open_package(kernel, modules, progress)
        own.features = _features(options)
        return own
    if tree is None and kernel is not None and modules is None:
        tree = kdir.tree_of(kernel)
    features = _features(options)
    if tree is None:
        assert kernel is not None
        own = kernel_file.open_kernel(kernel, modules)
        own.features = features
        return own
    own = kdir.open_kdir(tree, kernel, tuple(options.module), features)
    if modules is not None:
        own.modules = ModuleTree(kernel_file.modules_folder(modules, own.release))
    return own


def _features(options: GuestOptions) -> tuple[str, ...]:
    """Return the names in `own_kernel.FEATURE_DRIVERS` of what the guest needs besides the default."""
    from pyvmm.launch.build import features

    return (*(["sockets"] if options.vsock is not None else []), *features(options))


def _tell_lacks(options: GuestOptions, own: OwnKernel, lines: list[str], progress: Callable[[str], None]) -> None:
    for line in lines:
        progress(f"{own.place}: {line}")
    if options.kdir is not None and any("not set" in line for line in lines):
        progress(_how_to_set(options.kdir))


def _has_initramfs(own: OwnKernel) -> bool:
    return own.config is not None and own.config["CONFIG_INITRAMFS_SOURCE"].strip('"') not in ("n", "")


def _is_none(initrd: Path | None) -> bool:
    return initrd is not None and initrd.name == "none" and not initrd.exists()


def _how_to_set(tree: Path) -> str:
    from pyvmm.images.kernel_config import FRAGMENT

    script = "scripts/kconfig/merge_config.sh"
    if not (tree / script).exists():
        script = f"source/{script}"  # in the folder of `make O=`
    fragment = shlex.quote(str(FRAGMENT.resolve()))
    return f"all that guests use: cd {shlex.quote(str(tree))} && {script} .config {fragment} && make -j$(nproc)"


def _record(options: GuestOptions) -> Path:
    paths = (options.kernel, options.kdir, options.modules, options.initrd, Path.cwd())
    words = [*options.module, *options.device, *_features(options)]
    text = "\0".join([*(str(path and os.path.abspath(path)) for path in paths), *words])
    text += f"\0{bool(options.command)}"
    return cache_folder("own", f"{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}.json")


def _keep(options: GuestOptions, plan: BootPlan) -> BootPlan:
    from pyvmm.cache import disk_errors

    facts = {
        "kernel": os.path.abspath(plan.kernel),
        "initrd": "" if plan.initrd is None else os.path.abspath(plan.initrd),
        "absent": plan.absent or {},
        "known": plan.absent is not None,
    }
    with disk_errors("cannot keep what was found about the kernel"):
        write_private(_record(options), json.dumps(facts).encode() + b"\n")
    return plan
