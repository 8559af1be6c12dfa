"""The allocator's bounds, seen in a process of its own: they cannot be taken back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, os, sys
from gateway.io import memory
if sys.argv[1] == "settled":
    memory.settle()
libc = ctypes.CDLL(None)
if not hasattr(libc, "mallinfo2"):
    sys.exit(77)
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", *"abcdef")]
libc.mallinfo2.restype, libc.malloc.restype, libc.free.argtypes = Info, ctypes.c_void_p, [ctypes.c_void_p]
libc.free(libc.malloc(8 << 20))  # after this glibc takes blocks up to this size from the heap, unless it is told not to
before = libc.mallinfo2().hblks
block = libc.malloc(4 << 20)
print(libc.mallinfo2().hblks - before, os.environ.get("ARROW_DEFAULT_MEMORY_POOL"))
"""


def run(argument: str, **environment: str) -> list[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "ARROW_"))} | environment
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, argument], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip("this C library does not tell")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_large_block_goes_back_to_the_system_however_large_one_was_before() -> None:
    assert run("untouched") == ["0", "None"]
    assert run("settled") == ["1", "system"]


def test_the_environment_has_the_last_word() -> None:
    said = {"MALLOC_MMAP_THRESHOLD_": str(16 << 20), "ARROW_DEFAULT_MEMORY_POOL": "mimalloc"}
    assert run("settled", **said) == ["0", "mimalloc"]
