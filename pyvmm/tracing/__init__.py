"""What becomes of trace events once they happened: written, streamed, read again, compared, drawn.

    Event --> Record --> writer.FileSink --> text, JSON lines, Chrome's trace format     (formats, chrome)
                 |  --> control.observe --> a client of a running machine
    file --> read.Trace --> diff (two traces side by side), report (a page with pictures, tables)

`pyvmm.trace` declares events and is all that the rest of the machine needs; this package is imported only when
somebody looks.
"""
