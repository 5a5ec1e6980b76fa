"""Oracles: checks that tell whether a guest is still well, whatever a test has done to it.

    assert vm.survives()                    all of them, after a second of running
    vm.oracles.log.check()                  one of them
    vm.oracles.begin()                      what was found until now does not count any more

    hang         the agent or the heartbeat does not answer, a vCPU spins, a task is stuck in the kernel
    panic        crash registers, console, the machine's end, a reset without a request
    log          oops, warning, list corruption, lockdep, hung task and others in the kernel's log
    accounting   the guest's memory, the driver's counters and the host's books differ
    poison       the guest touched a page that it had given to the host (`vm.oracles.poison.on()`)
    wakeups      data in a ring without a signal to its reader
    signals      more signals or interrupts than packets explain
    devices      the guest's VMBus devices are others than those offered

An oracle is silent about a guest that does what Linux does with an honest host: whatever it finds is worth reading.
`suite.Oracles` is what `vm.oracles` returns.
"""
