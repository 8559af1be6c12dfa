"""Run a command as narrowly as a unit's lines say: `confine CALL,CALL,... COMMAND ...`.

It does with libseccomp and prctl what systemd does for `SystemCallFilter=`, `RestrictAddressFamilies=`,
`MemoryDenyWriteExecute=` and `NoNewPrivileges=`, so that a test can see whether the gateway lives with it
on a machine that was not started by systemd. Users, capabilities and the view of the files are not changed.

Source: seccomp_rule_add(3), prctl(2), systemd.exec(5).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.tools import DEBIAN, Tool

ALLOW = 0x7FFF0000
ERRNO = 0x00050000
EQUAL = 4
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)


class Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = (
        ("arg", ctypes.c_uint), ("op", ctypes.c_int), ("datum_a", ctypes.c_uint64), ("datum_b", ctypes.c_uint64),
    )  # fmt: skip


def allowed(lines: list[str], analyze: Tool) -> set[str]:
    """Return the system calls that the values of `SystemCallFilter=` allow, in their order."""
    calls = group("@default", analyze)
    for line in lines:
        takes = line.startswith("~")
        for name in line.removeprefix("~").split():
            named = group(name, analyze) if name.startswith("@") else {name}
            calls = calls - named if takes else calls | named
    return calls


def group(name: str, analyze: Tool) -> set[str]:
    """Return the system calls of a group, those of groups within it included."""
    assert analyze.path is not None
    done = subprocess.run(
        [analyze.path, "syscall-filter", "--no-pager", name], env={**os.environ, **analyze.env}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    words = [line.strip() for line in done.stdout.splitlines()[1:]]
    named = [word for word in words if word and not word.startswith("#")]
    return {c for word in named for c in (group(word, analyze) if word.startswith("@") else {word})}


def confine(calls: set[str]) -> None:
    """Allow this process and what it becomes only these calls, and no memory both written and run."""
    unpacked = next(DEBIAN.glob("**/libseccomp.so.2"), None)
    lib = ctypes.CDLL(str(unpacked) if unpacked else ctypes.util.find_library("seccomp") or "libseccomp.so.2")
    lib.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(lib.seccomp_init(ERRNO | errno.EPERM))
    numbers = {name: lib.seccomp_syscall_resolve_name(name.encode()) for name in calls}
    for name, number in numbers.items():
        if number < 0:  # not of this machine's kind
            continue
        rules = [Comparison(0, EQUAL, family, 0) for family in FAMILIES] if name == "socket" else [None]
        for rule in rules:
            count, argument = (0, None) if rule is None else (1, ctypes.byref(rule))
            if lib.seccomp_rule_add_array(context, ALLOW, number, count, argument):
                raise OSError(f"{name} cannot be allowed")
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)  # a kernel before 6.3 does not know it
    if lib.seccomp_load(context):
        raise OSError("the filter cannot be loaded")


if __name__ == "__main__":
    confine(set(sys.argv[1].split(",")))
    os.execv(Path(sys.argv[2]), sys.argv[2:])
