"""`pyvmm selftest`: tries everything that depends on the host, in about a minute, and writes a report for a bug.

pyvmm was written where no hardware virtualization is: whatever differs between its emulated host and a real one (see
docs/real-kvm.md) is tried by those who have one. For each engine and number of vCPUs one guest is booted and goes
through `steps`, of which `plan` has the list; `kvm_checks` needs no Linux.

    facts: CPU, KVM, kernel ----+
    kvm_checks: tiny guests ----+--> run: rows, printed as they end --> report: text or JSON, without personal data
    steps: a Linux guest each --+        +-- on failure: last trace events, end of the console

`programs` are the guest's test programs, `initrd` brings them and a second kernel into the guest.
"""
