"""The pytest plugin: a test that has an argument `vm` gets a booted guest of its own, in its own process.

    outer pytest            `pytest` as the user started it: collects, reports; runs no guest
      inner pytest          where KVM is, perhaps in the emulated host: collects the same files
        template            one process per configuration: boots its guest and freezes it
          test's process    forked for one test: the guest runs on, and the test in the same process

`hooks` is what pytest loads (entry point `pyvmm`); it imports the rest for the first test that needs a guest.
`configuration` reads marker, options and matrix. `outer` and `inner_process` start the inner pytest and pass its
reports on; `inner` is the inner pytest, `templates` has the two kinds of forked processes, `sections` what a failing
test's report shows.
"""
