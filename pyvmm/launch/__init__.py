"""Runs one machine: the code shared by the command line, `pyvmm tour`, the API and the tests.

`build` makes a MachineConfig of what a user names, `where` decides between this computer's KVM (`probe`) and the
emulated host, and `session` runs the machine: its console (`consoles`, `terminal`), standard output (`outputs`),
trace files (`trace_sinks`), confinement (`confined`), and messages on stderr (`notices`). No command
is declared here.
"""
