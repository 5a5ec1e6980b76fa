"""The boot loader and the firmware tables: the contents of guest memory and registers at the first instruction.

There is no firmware in this machine. The kernel file is read (`bzimage`, `elf`); its bytes, the initramfs and the
command line are written to guest memory, together with the boot parameters and firmware tables: the memory map
(`e820`), the zero page (`zero_page`, or for PVH `pvh`) and the ACPI tables (`acpi`, written in the bytecode of
`aml`). `entry` gives the first vCPU's registers. `linux.load_linux` does all of it in order.
"""
