"""Chapter: the sandbox. Before the guest's first instruction the VMM drops all rights that it does not need any more.

A guest that exploits an error in pyvmm, in Python or in a library could do in this process whatever its user may. So
`pyvmm run` confines itself once the guest is set up:

    capabilities.py   no new privileges by exec; no capabilities
    landlock.py       no files but those already open; Python's code may be read, and the machine's sockets removed
    seccomp.py        no system calls but about a hundred; bpf.py assembles the filter
    confine.py        applies all three: which files, which calls
    sweeper.py        removes a socket in a folder where the confined process may remove nothing
    attempts.py       calls that must fail, for tests; `python -m pyvmm.sandbox` shows them

No restriction can be lifted again, neither by the process nor by a thread or program that it starts.
"""
