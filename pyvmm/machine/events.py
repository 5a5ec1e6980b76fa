"""Trace events of the machine itself."""

from pyvmm.trace import event

state = event("machine.state", "-> {state}")
reset = event("machine.reset", "{reason}")
crash_kernel = event("machine.crash_kernel", "runs {seconds} s after the panic")
notice = event("machine.notice", "{text}")
power_off = event("machine.power_off", "{reason}")
loaded = event("machine.loaded", "kernel {kernel}, {milliseconds} ms")
unknown_exit = event("machine.unknown_exit", "vcpu {vcpu}: {exit} {detail}")
vcpu_exit = event("machine.vcpu_exit", "vcpu {vcpu}: {exit} {detail}")
page_map = event("machine.page_map", "{map}")
memory = event("machine.memory", "actual {actual} target {target} resident {resident} bytes")
exit_count = event("machine.exit_count", "vcpu {vcpu}: {count} {exit}")
map_slot = event("hv_balloon_map_slot", "mapping memslot {idx} / {total_slots} @ 0x{offset:x}")
unmap_slot = event("hv_balloon_unmap_slot", "unmapping memslot {idx} / {total_slots} @ 0x{offset:x}")
autosize = event("machine.autosize", "{reason} from {current} to {target}: demand {demand}, pressure {pressure}%")
autosize_held = event("machine.autosize_held", "automatic sizing {state}")
memory_discarded = event("machine.memory_discarded", "{size} bytes at {gpa:#x}")
watched = event("machine.watched", "{module}: {placed} breakpoints for {blocks} blocks")
forced_return = event("machine.forced_return", "the call at {address:#x} returns {value:#x}")
