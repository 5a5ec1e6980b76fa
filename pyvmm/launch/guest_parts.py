"""What a guest gets on demand for the devices that its machine has: modules, programs, lines of init."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm import images
from pyvmm.devices.echo.protocol import TYPE_GUID
from pyvmm.images.parts import Part
from pyvmm.images.programs import Programs

if TYPE_CHECKING:
    from pyvmm.launch.options import GuestOptions

UIO = Part(
    "uio",
    start=f"echo {TYPE_GUID} >/sys/bus/vmbus/drivers/uio_hv_generic/new_id\n",
)
"""Has uio_hv_generic give the echo device's channel to a program as /dev/uio0."""

_SCRIPTS = {
    "hv_set_ifconfig": (Path(images.__file__).parent / "guest/set-addresses").read_text(),
    "hv_get_dns_info": """#!/bin/sh\nsed -n 's/^nameserver //p' /etc/resolv.conf\n""",
    "hv_get_dhcp_info": """#!/bin/sh\n[ -f /run/udhcpc.$1.pid ] && echo Enabled || echo Disabled\n""",
}
"""What hv_kvp_daemon calls for the addresses of a network card."""

DAEMONS = Part(
    "daemons",
    programs=(Programs("hyperv-daemons", ("usr/sbin/hv_kvp_daemon", "usr/sbin/hv_vss_daemon"), ("bookworm",)),),
    files=(
        ("var/lib/hyperv/", ""),
        ("etc/os-release", 'NAME="pyvmm image"\nPRETTY_NAME="pyvmm image"\n'),
        ("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 guest\n"),  # hv_kvp_daemon looks the host name up
        *((f"usr/libexec/hypervkvpd/{name}", text) for name, text in _SCRIPTS.items()),
    ),
    start="""\
[ -n "$system" ] || hostname guest
for service in kvp vss; do
	[ -z "$system" ] || break # it has its own, if any
	( # the driver makes its file when it has found its device
		tries=0
		until [ -c /dev/vmbus/hv_$service ]; do
			tries=$((tries + 1))
			if [ $tries = 50 ]; then
				exit
			fi
			sleep 0.1
		done
		while :; do
			/usr/sbin/hv_${service}_daemon -n
			sleep 1
		done
	) </dev/null >/dev/null 2>&1 &
done
""",
)
"""The guest's ends of KVP and VSS."""

FILE_COPY = Part(
    "fcopy",
    programs=(
        Programs("hyperv-daemons", ("usr/sbin/hv_fcopy_uio_daemon",), only="trixie-backports"),
        Programs("hyperv-daemons", ("usr/sbin/hv_fcopy_daemon",), only="bookworm"),  # for Linux up to 6.9
    ),
    start="""\
[ -n "$system" ] || ( # one of the two is there a moment after the driver has found its device
	tries=0
	until [ -c /dev/vmbus/hv_fcopy ] || [ -d /sys/bus/vmbus/devices/eb765408-105f-49b6-b4aa-c123b64d17d4/uio ]; do
		tries=$((tries + 1))
		if [ $tries = 50 ]; then
			exit
		fi
		sleep 0.1
	done
	daemon=/usr/sbin/hv_fcopy_uio_daemon
	if [ -c /dev/vmbus/hv_fcopy ]; then
		daemon=/usr/sbin/hv_fcopy_daemon
	fi
	while :; do
		$daemon -n
		sleep 1
	done
) </dev/null >/dev/null 2>&1 &
""",
)
"""The guest's end of file copy: a driver in hv_utils up to Linux 6.9, then uio_hv_generic."""

PARTS = {"echo": UIO, "echo-monitored": UIO, "kvp": DAEMONS, "vss": DAEMONS, "fcopy": FILE_COPY}
"""Parts by the device that needs them, in the order in which they are appended: the last has the newest libraries."""

FEATURES = {"echo": "uio", "echo-monitored": "uio", "keyboard": "keyboard", "fcopy": "uio", "netvsc": "net"}
"""Names in `images.features`, the same."""


def parts_of(options: GuestOptions) -> tuple[Part, ...]:
    """Return the parts that the machine's devices need in the guest."""
    return tuple(dict.fromkeys(part for name, part in PARTS.items() if name in options.device))


def features_of(options: GuestOptions) -> tuple[str, ...]:
    """Return the names in `images.features` of the modules that they need."""
    return tuple(dict.fromkeys(FEATURES[name] for name in options.device if name in FEATURES))
