"""The heap of the C library: one for all threads."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

_M_ARENA_MAX: Final = -8  # malloc.h of glibc


def share_one_heap() -> None:
    """Let all threads share one heap, where the C library is glibc; call it before threads begin.

    glibc gives new threads heaps of their own, up to eight for each core (`M_ARENA_MAX`, mallopt(3)). Each heap keeps
    the room of the largest page that its threads have read. One heap is as fast: Python lets one thread work at a time.
    """
    with suppress(ImportError, OSError, AttributeError):  # another C library, or a Python without ctypes
        import ctypes

        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
