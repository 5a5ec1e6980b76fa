"""A kernel of the user's own, with its configuration and modules: which drivers a guest gets, and why others lack.

build tree (kdir.py), bzImage or vmlinux (kernel_file.py), linux-image-*.deb (kernel_package.py)  --> OwnKernel
OwnKernel.select(NAMES) --> the modules for the initramfs in load order, and a reason for each driver that lacks
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pyvmm.errors import ConfigError
from pyvmm.images.kernel_config import KernelConfig, lacking
from pyvmm.images.modules import ModuleTree, load_order, modinfo_value, module_name
from pyvmm.images.strip import strip_debug

_NOT_SET = " is not set"


@dataclass(frozen=True, slots=True)
class Driver:
    """A Hyper-V driver that guests load if their kernel has it.

    `options` are its names in configurations, the newest first: that of Linux 6.18 is asked first, and only where
    the kernel knows it. `place` is its folder in a build tree. `effect` is what a guest without the driver lacks;
    empty for one that pyvmm's devices do not need.
    """

    module: str
    options: tuple[str, ...]
    effect: str = ""
    place: str = "drivers/hv"

    def option(self, config: KernelConfig) -> str:
        """Return the option that decides about this driver in a kernel's configuration."""
        return next((name for name in self.options if config.knows(name)), self.options[-1])


DRIVERS = (
    Driver("hv_vmbus", ("CONFIG_HYPERV_VMBUS", "CONFIG_HYPERV"), "no VMBus, no balloon"),
    Driver("hv_utils", ("CONFIG_HYPERV_UTILS",), "no shutdown request, heartbeat or time synchronisation"),
    Driver("hv_balloon", ("CONFIG_HYPERV_BALLOON",), "no balloon"),
    Driver("hv_sock", ("CONFIG_HYPERV_VSOCKETS",), place="net/vmw_vsock"),
)
"""In the order in which the guest loads them."""

FEATURE_DRIVERS: dict[str, tuple[Driver, ...]] = {
    "disk": (
        Driver("hv_storvsc", ("CONFIG_HYPERV_STORAGE",), "no disks", "drivers/scsi"),
        Driver("sd_mod", ("CONFIG_BLK_DEV_SD",), "no disks", "drivers/scsi"),
        Driver("crc32c_generic", ("CONFIG_CRYPTO_CRC32C",), place="crypto"),  # ext4's, until Linux 6.12
        Driver("ext4", ("CONFIG_EXT4_FS",), "no ext4 on disks", "fs/ext4"),
    ),
    "net": (
        Driver("hv_netvsc", ("CONFIG_HYPERV_NET",), "no network", "drivers/net/hyperv"),
        Driver("ipv4", ("CONFIG_INET",), "no network", "net/ipv4"),
        Driver("af_packet", ("CONFIG_PACKET",), "no address by DHCP", "net/packet"),
    ),
    "share": (
        Driver("hv_sock", ("CONFIG_HYPERV_VSOCKETS",), "no shared folders", "net/vmw_vsock"),
        Driver("fuse", ("CONFIG_FUSE_FS",), "no shared folders", "fs/fuse"),
    ),
    "sockets": (Driver("hv_sock", ("CONFIG_HYPERV_VSOCKETS",), "no sockets (--vsock)", "net/vmw_vsock"),),
    "keyboard": (
        Driver("hyperv_keyboard", ("CONFIG_HYPERV_KEYBOARD",), "no keyboard", "drivers/input/serio"),
        Driver("atkbd", ("CONFIG_KEYBOARD_ATKBD",), "no keyboard", "drivers/input/keyboard"),
    ),
    "uio": (Driver("uio_hv_generic", ("CONFIG_UIO_HV_GENERIC",), "no /dev/uio0", "drivers/uio"),),
}
"""Drivers that only guests with a feature load (`features`), with the file system that disks are used with."""


@dataclass(slots=True)
class Selection:
    """The modules for an initramfs in load order, stripped, and why drivers are not among them, by name."""

    modules: list[tuple[str, bytes]] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class OwnKernel:
    """A kernel file and what is known about it.

    `place` is its name in messages. `remedy` is a format for the next step where the module {module} lacks.
    """

    kernel: Path
    place: str
    release: str = ""  # uname -r; empty if unknown
    config: KernelConfig | None = None
    modules: ModuleTree | None = None
    remedy: str = "give --modules DIR"
    notes: list[str] = field(default_factory=list)  # about the state of the tree, for the user
    features: tuple[str, ...] = ()

    @property
    def drivers(self) -> list[Driver]:
        """Return the drivers that guests load, in this order; one of a feature goes before the same without."""
        chosen = {driver.module: driver for driver in DRIVERS}
        for each in self.features:
            for driver in FEATURE_DRIVERS[each]:
                chosen[driver.module] = driver
        return list(chosen.values())

    def select(self, extra: tuple[str, ...] = ()) -> Selection:
        """Choose the drivers that there are, and `extra` modules (names, or paths of files), which must be there.

        Raises ConfigError for one of `extra` that is neither there nor built in, and for damaged modules.
        """
        chosen = Selection()
        given = {module_name(Path(each)) for each in extra}
        wanted = []
        for driver in self.drivers:
            if driver.module in given or self._is_builtin(driver):
                continue
            reason = chosen.absent.get("hv_vmbus") or self._lack(driver)
            if reason is None:
                wanted.append(driver.module)
            else:
                chosen.absent[driver.module] = reason
        order = self._load_order([*wanted, *extra])
        for name in given & order.keys():
            mismatch = self._mismatch(order[name])
            if mismatch:
                raise ConfigError(f"--module {name}: {mismatch}")
        chosen.modules = [(name, strip_debug(data)) for name, data in order.items()]
        return chosen

    def lacks(self, chosen: Selection, *, cpus: int = 1, grows: bool = True) -> list[str]:
        """Return what a guest will lack, a line each, by option and effect; then modules that were not found."""
        lines = [] if self.config is None else lacking(self.config, cpus=cpus, grows=grows)
        reported = " ".join(lines)
        unset: dict[str, list[str]] = {}
        for driver in self.drivers:
            reason = chosen.absent.get(driver.module)
            if reason is None or not driver.effect:
                continue
            if reason.startswith("CONFIG_") and f"{reason.split()[0]} " in reported:
                continue
            if driver.module != "hv_vmbus" and "hv_vmbus" in chosen.absent:
                continue  # no driver is of use without the bus
            if reason.endswith(_NOT_SET):
                unset.setdefault(driver.effect, []).append(reason.removesuffix(_NOT_SET))
            else:
                lines.append(f"{reason}: {driver.effect}")
        for effect, names in unset.items():
            lines.append(f"{' and '.join(names)}{_NOT_SET if len(names) == 1 else ' are not set'}: {effect}")
        return lines

    def _is_builtin(self, driver: Driver) -> bool:
        if self.config is not None:
            return self.config[driver.option(self.config)] == "y"
        return self.modules is not None and self.modules.is_builtin(driver.module)

    def _lack(self, driver: Driver) -> str | None:
        """Return why a driver that is not built in cannot be loaded; None if it can."""
        if self.config is not None:
            option = driver.option(self.config)
            if self.config[option] == "n":
                return f"{option}{_NOT_SET}"
        if self.modules is None:
            if self.config is None:
                return f"{driver.module} may be a module, and there are none; {self.remedy}"
            return f"{driver.option(self.config)}=m, and there are no modules; {self.remedy}"
        if self.modules.find(driver.module, driver.place) is None:
            where = "" if str(self.modules.folder) == self.place else f" in {self.modules.folder}"
            return f"there is no {driver.module}.ko{where}; {self.remedy}"
        try:
            found = self.modules.load_order([driver.module])
        except ConfigError as error:  # it needs a module that lacks, or is damaged
            return str(error)
        return next(filter(None, (self._mismatch(data) for _, data in found)), None)

    def _load_order(self, wanted: list[str]) -> dict[str, bytes]:
        if self.modules is not None:
            return dict(self.modules.load_order(wanted))
        return dict(load_order(wanted, lambda name: None, lambda name: False, self.place))

    def _mismatch(self, module: bytes) -> str | None:
        """Return why the kernel would refuse a module that was built for another release."""
        magic = modinfo_value(module, "vermagic").split(" ")[0]
        if not magic or not self.release or magic == self.release:
            return None
        name = modinfo_value(module, "name")
        return f"{name}.ko was built for Linux {magic}, this kernel is {self.release}; {self.remedy}"
