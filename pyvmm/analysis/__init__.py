"""Reads recorded traces: compares two of them, draws one as a page, turns one into another format.

    file --> read.Trace (entries) --> diff    two traces side by side
                                  --> report  a page with pictures, and tables
                                  --> read.rewrite   another format

It reads what `pyvmm.trace` and QEMU write. Only commands import it: a machine that runs needs none of it.
"""
