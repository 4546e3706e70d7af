"""How this process asks the system for memory: it keeps what it will need again."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt(3)


def keep_freed_memory(nbytes: int = 2**28) -> bool:
    """Let the allocator keep up to `nbytes` of freed memory at the end of its heap.

    Blocks of tens of MB are made and dropped many times a second here. glibc gives such memory
    back at once and gets it again page by page, which was a tenth of the loop's time (about seven
    page faults per event). Returns whether it was done: not where the C library is another one.
    Source: mallopt(3).
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    # 32 MiB is the highest that glibc takes; larger arrays are mapped each by itself.
    return bool(mallopt(_TRIM_THRESHOLD, nbytes) and mallopt(_MMAP_THRESHOLD, 2**25))
