"""The synthetic keyboard: keys as make codes of a PC keyboard. Small, for learning: no display shows what is typed.

* `keys`    make codes by QEMU's names of keys
* `device`  the bytes, and the device

Linux's driver (hyperv-keyboard) feeds what comes to atkbd as if a PC's keyboard controller had sent it, so that
Ctrl-Alt-Delete and SysRq work, and text on the first virtual terminal.
"""

from pyvmm.devices.keyboard.device import Keyboard

__all__ = ["Keyboard"]
