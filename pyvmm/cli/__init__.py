"""The `pyvmm` command line. `main` lists the subcommands by name and imports each only when it is used."""
