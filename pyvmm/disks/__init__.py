"""Disk images on the host: raw files and block devices, and other formats through QEMU's storage daemon.

    DiskSpec ("FILE,ro,format=qcow2")  --open_image-->  Image: read, write, flush, discard, write_zeroes

`spec` parses what the user wrote, `lock` keeps two writers apart, `raw` and `nbd` are the two kinds of image. Threads
of the device that serves an image use it (`pyvmm.devices.storvsc`); it knows nothing of guests.
"""
