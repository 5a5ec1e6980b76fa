"""The guest's devices. This chapter follows `pyvmm.iomap`, which routes ports and addresses to them.

Two kinds live here. The first answer port I/O on a vCPU's thread, one access at a time, and are a page each:

* `serial`   the console's 16550A: read `serial.uart` first, it shows the structure of all devices;
             `serial.window`: its MMIO registers, most of which a guest reads without an exit
* `rtc`      the CMOS clock: `rtc.clock`, and its interrupts in `rtc.interrupts`
* `i8042` and `acpi_pm` for reset and power-off

The second are VMBus devices (`pyvmm.vmbus.device`): packets in, packets out, all on the loop's thread.

* `ic`       the integration components: heartbeat, shutdown, time synchronisation
* `balloon`  hv-balloon, dynamic memory: the purpose of this project

A device depends neither on KVM nor on the machine; its effects on other parts are callables that it is given.
"""
