"""Makes the first traceback of a process cheap where files are slow, as over 9p in the emulated host.

For each line of source that pytest shows, `inspect.findsource` asks `inspect.getmodule` whose file it is. That is
answered by a table, which it fills at the first question: with the real path of each module's file, six calls of
lstat each. For the 850 modules of an inner pytest these take 10 s in the emulated host, and each test's process
would begin with an empty table.
"""

from __future__ import annotations

import inspect
import sys


def name_source_files() -> None:
    """Fill the table with the files of all imported modules, as they are named."""
    module_of_file: dict[str, str] = getattr(inspect, "modulesbyfile", {})
    done: dict[str, str] = getattr(inspect, "_filesbymodname", {})  # so that no question fills it in the slow way
    for name, module in sys.modules.copy().items():
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and inspect.ismodule(module):
            module_of_file[file] = module.__name__
            done[name] = file
