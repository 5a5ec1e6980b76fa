"""`pyvmm step`: runs a guest to its next exit, hypercall, message, packet or event, and shows what that means.

    `stepper`  stops the machine where something crosses a tap (`pyvmm.tap`) or a trace event comes, and goes on
    `show`     a stop as lines: the bytes beside the names of their fields (`pyvmm.decode`), what happened since
    `where`    the line of our source that will handle it, or the one that sent it
    `waits`    who waits for what: vCPUs, messages, channels, the balloon
    `commands` the words of the prompt and of `--script`

`pyvmm.launch.stepping` runs a session with it. Without options of a guest the session's guest is the one
without Linux (`pyvmm.images.tiny`), which every /dev/kvm runs.

An item that stops the machine is held where it crosses its tap: it is not done yet. While it is held the vCPUs are
out of the guest, guest time stands still, and the monitor answers, so that other commands (`pyvmm map`, `pyvmm
status`) show the same moment. What else comes meanwhile is held behind it, and delivered in the same order. On a
vCPU's thread, hypercalls and exits are held by blocking that thread.
"""
