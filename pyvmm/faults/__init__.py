"""Fault rules: pass, drop, delay, duplicate, reorder, truncate, change or insert what passes between host and guest."""
