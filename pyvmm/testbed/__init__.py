"""A test bed for Linux's Hyper-V drivers: booted guests as objects of a test, with the whole host side in its hands.

`vm.VM` is a guest in this process. The test's thread is the machine's loop thread: a wait runs the loop, an action of
the host is a plain call, and nothing happens on the host's side between two calls.
`template.Template` freezes a booted guest, to be forked for each test.
"""
