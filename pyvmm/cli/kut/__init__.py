"""kvm-unit-tests for `pyvmm kut`.

suite.py    unittests.cfg: the tests and their settings
plan.py     a test's settings, written for QEMU, as a machine's options, or the reason why it cannot run
runner.py   one test in a machine and process of its own, and its result
"""
