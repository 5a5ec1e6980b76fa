"""The Hyper-V enlightenments of the machine: what makes Linux detect Hyper-V, and what VMBus is built on.

A guest finds Hyper-V by CPUID (`cpuid`), talks to it by model-specific registers (`tlfs` has the numbers) and by
calling a page of code that the hypervisor put into its memory (`hypercall`). Out of these grows the SynIC (`synic`):
per virtual processor (VP) one page of message slots and one of event flags, and sixteen interrupt sources (SINTs)
whose vectors tell the guest to look there. A reference clock (`clock`) and crash registers (`crash`) complete it.
What else a guest is offered is a choice (`enlightenments`): synthetic timers (`stimer`), IPI calls (`ipi`) and more.

An *engine* implements this, one of two:

* `user.UserEngine`: everything here, in Python, on any KVM. MSR accesses come as exits, the hypercall page traps by a
  port write, interrupts go out as MSIs. Read this one to learn.
* `kernel.KernelEngine`: KVM's own Hyper-V support answers; only posts of messages, unknown signals and changes of the
  SynIC pages reach us, and interrupts go out through irqfds on SINT routes.

VMBus sees either through `partition.Partition` and never asks which one runs.

            guest                                   host
    rdmsr/wrmsr 0x4000xxxx  ------------------>  engine (vCPU thread)
    call hypercall page     -- 0x5C post ----->  listener -> loop -> VMBus server
                            -- 0x5D signal --->  connection -> loop -> channel
    SIMP page, slot SINT2   <-- message -------  Synic.post()      (loop thread)
    SIEFP page, bit relid   <-- event flag ----  Synic.signal()    (loop thread)
    vector 0xF3             <-- interrupt -----  engine
"""
