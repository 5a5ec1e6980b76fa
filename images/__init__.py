"""Guest kernels and initramfs: recipes, and a cache of their outputs. Outputs are never committed.

The default guest is assembled on the user's machine: a Debian cloud kernel fetched by apt (`packages`), its packed
kernel unpacked once (`payload`), and an initramfs (`initramfs`, `cpio`) with `busybox`, the kernel's Hyper-V
`modules` and the files of the folder `guest`: /init and the agent (its host side: `pyvmm.machine.agent_protocol`).
`catalog` finds images by name. What only some guests need comes on demand: modules by `features`, programs of Debian
packages with their libraries (`programs`) in `parts` that are appended to the initramfs.

A kernel of the user's own is an `own_kernel.OwnKernel`, whether it lies in a build tree (`kdir`), is a file with a
folder of modules (`kernel_file`) or comes in a package (`kernel_package`); `kernel_config` tells what it lacks.
"""
