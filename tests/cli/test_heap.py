"""All threads of a command share one heap of the C library."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Eight threads hold memory at once; then glibc lists its heaps (malloc_info(3)).
COUNT_HEAPS = """
import ctypes, sys, threading
from reconciler.cli.main import main

if sys.argv[1:]:
    main(sys.argv[1:])
together = threading.Barrier(9)

def hold():
    held = bytes(1 << 16)
    together.wait()
    together.wait()

threads = [threading.Thread(target=hold) for _ in range(8)]
for thread in threads:
    thread.start()
together.wait()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(b"/dev/stderr", b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
together.wait()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has several heaps")
@pytest.mark.parametrize(("arguments", "is_one"), [((), False), (("man",), True)], ids=["no command", "a command"])
def test_threads_of_a_command_share_one_heap(arguments: tuple[str, ...], *, is_one: bool) -> None:
    command = [sys.executable, "-c", COUNT_HEAPS, *arguments]
    heaps = subprocess.run(command, check=True, capture_output=True, text=True).stderr.count("<heap nr=")
    assert heaps >= 1
    assert (heaps == 1) is is_one
