"""Files that appear whole or not at all.

What it does not do: write over anything.
"""

from __future__ import annotations

import os
from pathlib import Path


def write_new(file: Path, data: bytes, mode: int) -> None:
    """Write a file that does not exist, durable; FileExistsError if it does."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left) :]
        os.fsync(handle)
    finally:
        os.close(handle)
