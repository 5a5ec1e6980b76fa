"""The `pyvmm` command. `main` knows the subcommands by name and imports one only when it is used."""
