"""The serial port: `uart`, a 16550A behind I/O ports, and `window`, its registers in guest memory."""
