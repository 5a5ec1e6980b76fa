"""Kernels built from Debian's source packages with images/kernel.config, and booted: `make test-kdir`."""
