"""Files and functions that one can hold in the head, and a first sentence on each."""

from __future__ import annotations

import ast

from tests.tidy.tree import Module, modules

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 80
FUNCTION_LINES_AIM = 60
ABOVE_AIM_SHARE_MAX = 0.02


def lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function from `def` to its end, without its docstring."""
    assert function.end_lineno is not None
    total = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None and first.end_lineno is not None:
        total -= first.end_lineno - first.lineno + 1
    return total


def too_long(module: Module) -> list[str]:
    """Return the file and its functions that are longer than allowed."""
    found = []
    if (length := module.text.count("\n")) > FILE_LINES_MAX:
        found.append(f"{module.path}: {length} lines")
    return found + [
        f"{module.path}:{f.lineno} {f.name}: {lines(f)} lines"
        for f in module.functions
        if lines(f) > FUNCTION_LINES_MAX
    ]


def wordless(module: Module) -> bool:
    """Tell whether a module with content does not say what it is for."""
    return bool(module.tree.body) and not ast.get_docstring(module.tree)


def test_files_and_functions_are_not_too_long() -> None:
    assert [found for module in modules() for found in too_long(module)] == []


def test_every_module_says_what_it_is_for() -> None:
    assert [module.path for module in modules() if wordless(module)] == []


def test_long_functions_are_rare() -> None:
    functions = [(m.path, f.name, lines(f)) for m in modules() for f in m.functions]
    above = [f for f in functions if f[2] >= FUNCTION_LINES_AIM]
    assert len(above) <= ABOVE_AIM_SHARE_MAX * len(functions), above


def test_long_and_wordless_modules_are_found() -> None:
    assert too_long(Module("mirror/a.py", "\n" * (FILE_LINES_MAX + 1)))
    assert too_long(Module("mirror/a.py", "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX))
    assert not too_long(Module("mirror/a.py", "def f():\n" + "    x = 1\n" * (FUNCTION_LINES_MAX - 1)))
    assert wordless(Module("mirror/a.py", "x = 1"))
    assert not wordless(Module("mirror/a.py", ""))
