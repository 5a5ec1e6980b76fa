"""The emulated host: a small Linux with KVM under QEMU TCG, in which the user's own command line runs.

For machines whose KVM is missing or cannot run Linux (`probe` tells). The user sees no difference but the speed.

    kit       a Debian kernel, and an initramfs with a few modules and a ready Python (`preload`)
    qemu      the hardware; it dies with its parent
    snapshot  boots the kit once and keeps it, suspended; a later start restores it in a fraction of a second
    agent     first process inside (`rootfs`: the machine's files; `zygote`: how a fork becomes a command)
    protocol, endpoint   frames, windows and descriptors, on both sides
    client    the outer side of one command: terminal, signals, forwarded sockets
    emulated  a host that ends with this process;   daemon  one that is kept up;   commands  what the CLI calls
    inside    for code that runs in there: where to bind a socket that is to be reached from outside

Decisions, and why:

* **Suspended before anything is mounted.** QEMU refuses to save its state while 9p is mounted; before that the state
  knows nothing of the machine, so one snapshot serves every working folder. Memory is a file mapped privately, so
  restoring copies nothing and untouched pages cost nothing, on disk or in memory.
* **Python waits inside, imported.** Under emulation an interpreter's start and imports take seconds, a fork of one
  that has them takes a tenth. `python -m MODULE` by the same interpreter is such a fork; all else is exec'ed.
  Changed sources of pyvmm are imported anew (some seconds), until nobody has edited them for ten minutes (or until
  `refresh`): then the saved host is made again.
* **The root is the machine's, writable**, not cached (/usr alone is cached, and read-only): what a command writes is
  where the user looks, what an editor saves is what the next command reads. QEMU acts with the user's own rights.
* **Sockets are forwarded, not shared:** a socket belongs to its kernel. The same path names both ends (`inside`).
  Descriptors passed over them do not travel.
* **Nothing is left over:** socket pairs instead of socket files, memory instead of log files, PR_SET_PDEATHSIG on
  QEMU, and an agent that powers off when its port closes. What is kept in the cache is made under a lock and renamed.

Importing this package imports nothing else.
"""
