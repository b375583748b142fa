"""Reads a submitted function before it runs: an allow-list of what tensor code needs.

It stops accidents and the tricks that test_assignments.py lists. It is no sandbox.
"""

import ast
import sys

BUILTINS = """abs all any bool dict divmod enumerate filter float int isinstance iter len list map
max min pow print range reversed round set slice sorted str sum tuple zip ValueError SystemExit
torch F nn math itertools functools"""
STATEMENTS = """Expr Return Assign AugAssign AnnAssign For While If With FunctionDef Raise Assert
Break Continue Pass"""
# Attributes that lead out of tensor code begin so: Python's inner ones, files, global state, hooks.
FORBIDDEN = """_ f_ gi_ tb_ co_ cr_ ag_ set_ register load save dump numpy np tofile from_ storage
untyped_ share_ compile manual_ seed utils hub jit package library ops classes backends
serialization distributed fx testing overrides mp"""


def complaints(function, known):
    """What a function does that no task needs: a list of "line n: ...".

    function: its syntax tree; only its body is read, for only that is taken.
    known: the names that it may use besides its own, Python's harmless ones and torch.
    """
    known, said = {*known, *BUILTINS.split()}, []
    for node in ast.walk(function):
        if isinstance(node, (ast.arg, ast.FunctionDef)) or is_stored(node):
            known.add(getattr(node, "arg", getattr(node, "name", getattr(node, "id", ""))))
    for node in (node for statement in function.body for node in ast.walk(statement)):
        kind, attribute = type(node).__name__, getattr(node, "attr", "")
        if (
            "Yield" in kind
            or (isinstance(node, ast.stmt) and kind not in STATEMENTS.split())
            or (isinstance(node, ast.Name) and node.id not in known)
            or (attribute and is_stored(node))
            or attribute.startswith(tuple(FORBIDDEN.split()))
            or attribute in sys.stdlib_module_names  # which torch's modules hold
        ):
            code = ast.unparse(node).splitlines()[0]
            said.append(f"line {node.lineno}: `{code}` is not needed here, and not allowed")
    return said


def is_stored(node):
    """Whether something is assigned to it."""
    return isinstance(getattr(node, "ctx", None), ast.Store)
