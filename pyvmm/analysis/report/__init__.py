"""A trace told as a page: what was said, how long answers took, how the memory went.

    read.Trace --> story (memory, sequences, exits, counts) --> page (HTML with SVG of our own)
               --> latency (pairs of events)                --> tables (the same as CSV)

Everything is computed from the events alone, so a trace of an older version, or QEMU's log, gives what it can.
"""
