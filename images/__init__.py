"""Guest kernels and initramfs: recipes, and the cache of what they made. Nothing made here is ever committed.

The default guest is put together on the user's machine: a Debian cloud kernel fetched by apt (`packages`), its packed
kernel unpacked once (`payload`), and an initramfs (`initramfs`, `cpio`) with `busybox`, the kernel's Hyper-V
`modules` and what is in the folder `guest`: /init and the agent (its host side: `pyvmm.machine.agent_protocol`).
`catalog` knows the images by name. `kdir` and `kernel_config` serve those who bring a kernel of their own.
"""
