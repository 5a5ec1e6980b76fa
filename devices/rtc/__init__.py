"""The CMOS clock: `clock`, its registers and the time of day, and `interrupts`: alarm, update, periodic."""
