"""The emulated host: a small Linux with KVM under QEMU TCG, in which the user's own command line runs.

It serves machines whose KVM is missing or cannot run Linux. The user sees no difference but the speed.

    boot_image    a Debian kernel, and an initramfs with a few modules: the same for all checkouts
    preload   the ready Python with pyvmm's modules, a second archive for the boot before a host is saved
    qemu      the QEMU process; it is killed when its parent ends
    snapshot  boots them once and keeps the host, suspended; a later start restores it in a fraction of a second
    cache_limits  how much of that is kept, for how long, and what is removed first
    agent     first process inside (`rootfs`: the machine's files; `zygote`: a fork that runs a command)
    protocol, endpoint   frames, windows and descriptors, on both sides
    client    the outer side of one command: output, terminal, signals
    forwards, dial_forward   sockets of the machine that are reachable inside, and a guest's way to its programs
    emulated  a host that ends with this process;   daemon  one that keeps running;   commands  what the CLI calls
    inside    for code that runs in the host: where to bind a socket that must be reachable from outside

Decisions, and why:

* **Suspended before anything is mounted.** QEMU refuses to save its state while 9p is mounted; before that the state
  knows nothing of the machine, so one snapshot serves every working folder. Memory is a file mapped privately, so
  restoring copies nothing and untouched pages cost nothing, on disk or in memory.
* **Python waits inside, imported.** Under emulation an interpreter's start and imports take seconds, a fork of one
  that has them takes a tenth. `python -m MODULE` by the same interpreter is such a fork; all else is exec'ed.
  Sources of pyvmm that are not those imported (edited since, or another checkout's) are imported anew (some seconds),
  until they have not been edited for ten minutes (or until `refresh`): then this checkout's host is saved.
* **The root is the machine's, writable**, not cached (/usr alone is cached, and read-only): what a command writes is
  where the user looks, what an editor saves is what the next command reads. QEMU acts with the user's own rights.
* **Sockets are forwarded, not shared:** a socket belongs to its kernel. The same path names both ends (`inside`).
  A descriptor that a client passes over one is opened again inside by its path, as a disk's is (FILE, `endpoint`).
* **A larger host serves a smaller guest.** Untouched memory costs nothing, so the smallest saved host that has enough
  is used, and sizes come in classes.
* **Nothing is left over:** socket pairs instead of socket files, memory instead of log files, PR_SET_PDEATHSIG on
  QEMU, and an agent that powers off when its port closes. What is kept in the cache is made under a lock and renamed.

Importing this package imports nothing else.
"""
