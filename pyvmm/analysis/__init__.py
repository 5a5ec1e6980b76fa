"""Analysis of recorded traces: compares two of them, renders one as a page, converts one to another format.

    file --> read.Trace (entries) --> diff    two traces side by side
                                  --> report  a page with pictures, and tables
                                  --> read.rewrite   another format

It reads traces of `pyvmm.trace` and of QEMU. Only commands import it: a running machine does not need it.
"""
