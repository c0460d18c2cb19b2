"""Landlock: the kernel refuses this process every path, every connection and every signal to others; landlock(7).

Descriptors that are open stay usable, and so do files without a name. A path can still be asked for its metadata.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

# The same number on every architecture: asm-generic/unistd.h.
_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_GET_VERSION = 1
# linux/landlock.h: rights that exist from a version of the interface on. What is handled and not allowed is refused.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_NETWORK_RIGHTS = {4: 0b11}  # bind and connect, of TCP
_SCOPES = {6: 0b11}  # abstract unix sockets, signals: only within what is restricted together


class _Attributes(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64)]


def version() -> int:
    """Of the interface that the kernel offers; 0: none, as before Linux 5.13, or where it is turned off."""
    return max(0, _call(_CREATE_RULESET, None, 0, _GET_VERSION))


def refuse_everything() -> None:
    """Allow this thread no path, and whatever else this kernel can refuse, for the rest of its life. Needs `no_new_privs`.

    Raises:
        OSError: The kernel does not offer it.
    """
    offered = version()
    attributes = _Attributes(*(_all_of(rights, offered) for rights in (_FILE_RIGHTS, _NETWORK_RIGHTS, _SCOPES)))
    # A kernel refuses a structure with fields that it does not know, unless these are zero.
    ruleset = _call(_CREATE_RULESET, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        if _call(_RESTRICT_SELF, ruleset, 0) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(ruleset)


def _all_of(rights: dict[int, int], offered: int) -> int:
    return sum(bits for since, bits in rights.items() if since <= offered)


def _call(number: int, *arguments: Any) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return int(libc.syscall(ctypes.c_long(number), *arguments))
