"""Chapter: confinement. A machine monitor needs much while it sets a guest up, and little afterwards.

A guest that finds an error in pyvmm, in Python or in a library can make the process do what it likes, with the rights
of its user. So `pyvmm run` gives up, before the guest's first instruction, what it does not need from then on:

    capabilities.py   no new privileges by exec; none of root's
    landlock.py       no file but those that are open; Python's code may be read, and the machine's sockets removed
    seccomp.py        no system call but some hundred; bpf.py assembles the filter
    confine.py        puts these together: which files, which calls
    sweeper.py        removes a socket in a folder where the confined process may remove nothing
    attempts.py       tries what must fail, for tests; `python -m pyvmm.sandbox` shows it

None of it can be taken back by the process, or by a thread or program that it starts.
"""
