"""Running one machine: what the command line, `pyvmm tour`, the API and the tests have in common.

`build` makes a MachineConfig of what a user names, `where` decides between this computer's KVM (`probe`) and the
emulated host, and `session` runs the machine: its console (`consoles`, `terminal`), standard output (`outputs`),
trace files (`trace_sinks`), confinement (`confined`), and what is told meanwhile (`notices`). No
command is declared here.
"""
