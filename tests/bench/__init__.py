"""Measurements: each module is a program, `python -m tests.bench.NAME`. README.md keeps figures and their dates."""
