"""The commands of `pyvmm`: one module each, named after its verb. `cli.main` imports a command when it is used."""
