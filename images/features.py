"""Features: what a guest may need besides the default, with its kernel modules. Only guests that use it load them."""

from __future__ import annotations

FEATURES: dict[str, tuple[str, ...]] = {
    "disk": ("hv_storvsc", "sd_mod"),
    "uio": ("uio_hv_generic",),
    "keyboard": ("hyperv_keyboard",),
    "net": ("hv_netvsc",),
    "sessions": ("hv_sock",),
    "share": ("fuse",),
}
"""Modules by feature, without their dependencies. Debian's cloud kernels have ext4 built in."""

ON_DEMAND = ("sessions",)
"""Features whose modules every initramfs has; the guest loads them when they are first wanted."""
