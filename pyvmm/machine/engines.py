"""Selects the Hyper-V engine of a machine: KVM's own where it is complete, otherwise ours."""

from __future__ import annotations

from collections.abc import Iterable

from pyvmm.errors import ConfigError, HostError
from pyvmm.hyperv import kernel, user
from pyvmm.hyperv.engine import Engine
from pyvmm.hyperv.enlightenments import ALL, DEFAULT, chosen
from pyvmm.kvm import Cap, Kvm
from pyvmm.loop import Loop
from pyvmm.machine.config import EngineChoice
from pyvmm.machine.hardware import ROUTES
from pyvmm.memory import GuestMemory


def missing(kvm: Kvm, needed: tuple[Cap, ...]) -> list[str]:
    """Return the names of the capabilities this KVM lacks."""
    return [f"KVM_CAP_{cap.name}" for cap in needed if not kvm.check(cap)]


def choose(
    choice: EngineChoice,
    kvm: Kvm,
    vp_count: int,
    memory: GuestMemory,
    loop: Loop,
    *,
    invariant_tsc: bool,
    enlightenments: Iterable[str] = (),
) -> Engine:
    """Return the engine for `choice`, with the default enlightenments changed by the words `enlightenments`.

    Raises ConfigError if the engine was requested by name and KVM does not support it, or if it lacks an
    enlightenment.
    """
    words = tuple(enlightenments)
    lacks_kernel = missing(kvm, kernel.NEEDED)
    if choice == "kernel" and lacks_kernel:
        raise ConfigError(f"--hyperv kernel: this KVM lacks {', '.join(lacks_kernel)}; use --hyperv user")
    if choice == "kernel" or (choice == "auto" and not lacks_kernel):
        names = chosen(words, "kernel")
        lacks = kernel.lacking(kvm, names - DEFAULT)
        if f"+{ALL}" in words:
            names -= {name for name in lacks if f"+{name}" not in words}
        refused = sorted(name for name in lacks if name in names)
        if refused:
            what = ", ".join(refused)
            raise ConfigError(f"this KVM has no enlightenment {what}: leave {what} out, or use a newer host kernel")
        return kernel.KernelEngine(
            vp_count,
            memory,
            loop,
            base_routes=ROUTES,
            invariant_tsc=invariant_tsc and kernel.has_invariant_control(kvm),
            extended_calls_exit=kernel.passes_extended_calls(kvm),
            enlightenments=names,
        )
    lacks_user = missing(kvm, user.NEEDED)
    if lacks_user:
        raise HostError(
            f"this KVM lacks {', '.join(lacks_user)}: no Hyper-V engine runs on it (--host emulated does)"
        )
    return user.UserEngine(vp_count, memory, loop, invariant_tsc=invariant_tsc, enlightenments=chosen(words, "user"))
