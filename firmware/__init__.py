"""What a BIOS and a boot loader would have left in memory, up to the guest's first instruction.

There is no firmware in this machine. The kernel file is read (`bzimage`, `elf`), its bytes, the initramfs and the
command line are written to guest memory, and with them the papers a PC hands its kernel: the map of memory
(`e820`), the boot parameters (`zero_page` or, for PVH, `pvh`) and the ACPI tables (`acpi`, written in the bytecode
of `aml`). `entry` then says what the first vCPU's registers hold. `linux.load_linux` does all of it in order.
"""
