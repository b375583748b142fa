"""Reads a submitted function before it runs: an allow-list of what tensor code needs.

It stops accidents and the tricks that test_assignments.py lists. It is no sandbox.
"""

import ast
import builtins
import sys

BUILTINS = """abs all any bool dict divmod enumerate filter float int isinstance iter len list map
max min pow print range reversed round set slice sorted str sum tuple zip
ValueError NotImplementedError SystemExit"""
STATEMENTS = """Expr Return Assign AugAssign AnnAssign For While If With FunctionDef Raise Assert
Break Continue Pass"""
# Attributes that lead out of tensor code begin so: Python's inner ones, files, global state, hooks.
FORBIDDEN = """_ f_ gi_ tb_ co_ cr_ ag_ set_ register load save dump numpy np tofile from_ storage
untyped_ share_ compile manual_ seed utils hub jit package library ops classes backends
serialization distributed fx testing overrides mp"""


def complaints(function):
    """What a function does that no task needs: a list of "line n: ...".

    function: its syntax tree; only its body is read, for only that is taken.
    """
    said = []
    for node in (node for statement in function.body for node in ast.walk(statement)):
        kind = type(node).__name__
        attribute, name = getattr(node, "attr", ""), getattr(node, "id", "")
        if (
            "Yield" in kind
            or (isinstance(node, ast.stmt) and kind not in STATEMENTS.split())
            or (name in dir(builtins) and name not in BUILTINS.split())
            or name.startswith("__")
            or (attribute and isinstance(node.ctx, ast.Store))
            or attribute.startswith(tuple(FORBIDDEN.split()))
            or attribute in sys.stdlib_module_names  # which torch's modules hold
        ):
            code = ast.unparse(node).splitlines()[0]
            said.append(f"line {node.lineno}: `{code}` is not needed here, and not allowed")
    return said
