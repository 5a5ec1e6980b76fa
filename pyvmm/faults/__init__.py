"""Fault rules: pass, drop, delay, duplicate, reorder, truncate, change or insert what host and guest exchange."""
