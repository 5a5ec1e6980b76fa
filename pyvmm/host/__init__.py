"""The emulated host: a small Linux with KVM under QEMU TCG, in which the same command line runs.

Light on purpose: importing this package imports nothing else. See `emulated.EmulatedHost` to start.
"""
