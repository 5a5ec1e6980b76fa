"""What the guest finds: the chapter after `pyvmm.iomap`, which routes a port or an address to one of these.

Two kinds live here. The first answer port I/O on a vCPU's thread, one access at a time, and are a page each:

* `serial`   the 16550A whose bytes are the console: read it first, it is every driver in small; `serial_window`: how
             a guest reaches it without leaving at every step
* `rtc`      the CMOS clock, with its interrupts in `rtc_events`
* `i8042` and `acpi_pm` are here for what Linux does last: reset and power-off

The second are VMBus devices (`pyvmm.vmbus.device`): packets in, packets out, all on the loop's thread.

* `ic`       the integration components: heartbeat, shutdown, time synchronisation
* `balloon`  hv-balloon, the memory that comes and goes: why this project exists

A device knows neither KVM nor the machine it is part of; what it may do to the outside comes in as callables.
"""
