"""Code coverage of a guest's kernel modules by breakpoints: no rebuilt kernel, and no cost once a block was seen.

    program   blocks of a module's ELF, where each may carry a breakpoint; cached by build id
        elf, builtin    code, symbols, relocations and the sites that the kernel rewrites
        descent         from the functions' symbols to basic blocks (capstone)
    guest     where the modules lie in a running guest
    machine.traps       OUT 0x7E over an instruction of each block, taken out at its first hit
    record    what was seen, by module and build id: merged over forks and runs, saved as JSON
    report, page, export    text, one HTML page, lcov and drcov
    returns   forced returns: a call in a module's function is skipped and gives an error

The parts that read ELF and disassemble need the extra `pyvmm[cover]` and are imported on use. A machine knows only
addresses (`pyvmm.machine.traps`): a confined process needs neither files nor a disassembler.
"""
