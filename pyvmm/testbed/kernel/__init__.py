"""Reads a running Linux kernel's own data from guest memory, by the symbols and layouts in its image.

    btf              decodes the structures of an image; pyvmm.kallsyms its symbols
    view             virtual addresses of a guest; symbols and layouts, kept in the cache
    printk, tasks    the kernel's log; its tasks
    backtrace        names addresses, modules' too; scans a kernel stack

Nothing in it needs the guest's help: a hung, crashed or paused guest is read as well, and no exit is caused. A kernel
without KALLSYMS or DEBUG_INFO_BTF cannot be read, nor one that has moved itself (KASLR): pyvmm loads the unpacked
image, which does not. All numbers come from the guest and may be wrong: every read is checked, every loop is bounded.
"""
