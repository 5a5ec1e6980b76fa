"""Code coverage of a guest's unmodified kernel modules: basic blocks from the ELF, breakpoints removed at their first hit."""
