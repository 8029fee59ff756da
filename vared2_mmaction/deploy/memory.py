# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Memory that a process keeps when tensors on a CPU are freed."""

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Parameters of glibc's mallopt(3)."""
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next ones, from now on.

    By default glibc gives large blocks back to the system, and the next map of features waits until
    it has as many pages again, emptied. For networks on a CPU with maps of many megabytes that is a
    large part of the time. The process then keeps what it needed at its peak.

    Returns:
        Whether the C library is glibc; others have no such settings and are left as they are.
    """
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # on Windows
        return False
    if not hasattr(libc, 'gnu_get_libc_version'):
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, 2**26))
    return all(libc.mallopt(parameter, value) == 1 for parameter, value in settings)
