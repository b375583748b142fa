"""Reads a submitted function before it runs: what tensor code does not need is refused.

It stops accidents and the tricks that stand in solutions.toml. It is no sandbox.
"""

import ast
import builtins
import sys

BUILTINS = """abs all any bin bool dict divmod enumerate filter float format int isinstance iter len
list map max min next pow print range repr reversed round set slice sorted str sum tuple zip
NotImplementedError TypeError ValueError"""
STATEMENTS = """Import ImportFrom ClassDef Try TryStar Global AsyncFunctionDef AsyncFor AsyncWith
Await Yield YieldFrom"""
# Attributes that lead out of tensor code begin so: Python's inner ones, files, global state, hooks.
PREFIXES = """_ f_ gi_ tb_ co_ cr_ ag_ set_ register load save dump numpy tofile from_ storage
untyped_ share_ compile"""
# Modules that torch's modules hold, by these names or by those that Python gives its own.
MODULES = """np mp utils hub jit package library ops classes backends serialization distributed fx
testing overrides onnx futures"""
HARMLESS = {"chunk", "copy", "select", "trace"}  # such a module's name, and a tensor's method


def complaints(function):
    """What is refused in a function: a list of "line n: ...".

    function: its syntax tree; only its body is read, for only that is taken.
    """
    said, modules = [], {*MODULES.split(), *sys.stdlib_module_names} - HARMLESS
    for node in (node for statement in function.body for node in ast.walk(statement)):
        attribute, name = getattr(node, "attr", ""), getattr(node, "id", "")
        if (
            type(node).__name__ in STATEMENTS.split()
            or (name in dir(builtins) and name not in BUILTINS.split())
            or name.startswith("__")
            or (attribute not in ("", "requires_grad") and not isinstance(node.ctx, ast.Load))
            or attribute.startswith(tuple(PREFIXES.split()))
            or attribute in modules
        ):
            code = ast.unparse(node).splitlines()[0]
            said.append(f"line {node.lineno}: `{code}` is not needed here, and not allowed")
    return said
