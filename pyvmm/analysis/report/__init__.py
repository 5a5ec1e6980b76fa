"""A trace as an HTML page: messages, latencies, memory over time.

    read.Trace --> summary (memory, sequences, exits, counts) --> page (HTML with SVG of our own)
               --> latency (pairs of events)                --> tables (the same as CSV)

Everything is computed from the events alone, so an older trace, or QEMU's log, fills the parts it has events for.
"""
