"""Code coverage of a guest's unmodified kernel modules: basic blocks from the ELF, and breakpoints at each of them.

A breakpoint is removed at its first hit, so that a block that was seen costs nothing more.
"""
