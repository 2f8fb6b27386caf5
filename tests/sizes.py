"""The size check: files up to 400 lines, functions up to 60 without their docstring, up to six arguments.

Exceptions are listed by name; the list only shrinks. Run by ``make check``.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

FILE_LINES, FUNCTION_LINES, ARGUMENTS = 400, 60, 6
# Commands: their parameters are the command line itself.
EXCEPTIONS: frozenset[str] = frozenset()


def too_large(path: Path) -> list[str]:
    """What in one file is over a limit, as ``file:line: what``."""
    text = path.read_text(encoding="utf-8")
    found = [f"{path}: {lines} lines"] if (lines := text.count("\n")) > FILE_LINES else []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or f"{path.stem}.{node.name}" in EXCEPTIONS:
            continue
        docstring = ast.get_docstring(node, clean=False)
        lines = (node.end_lineno or 0) - node.lineno + 1 - (len(docstring.splitlines()) if docstring else 0)
        given = [
            a for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")
        ]
        if lines > FUNCTION_LINES:
            found.append(f"{path}:{node.lineno}: {node.name} has {lines} lines")
        if len(given) > ARGUMENTS:
            found.append(f"{path}:{node.lineno}: {node.name} takes {len(given)} arguments")
    return found


if __name__ == "__main__":
    faults = [fault for path in sorted(Path("src").rglob("*.py")) for fault in too_large(path)]
    print("\n".join(faults) or "sizes: every file and function is within its limits")
    sys.exit(bool(faults))
