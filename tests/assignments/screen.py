"""Reads a submitted function before it runs: what tensor code does not need is refused.

It stops accidents and the tricks that stand in solutions.toml. It is no sandbox.
"""

import ast
import builtins
import itertools
import json
import math
from pathlib import Path

BUILTINS = """abs all any bin bool dict divmod enumerate filter float format int isinstance iter len
list map max min next pow print range repr reversed round set slice sorted str sum tuple zip
NotImplementedError TypeError ValueError"""
STATEMENTS = """Import ImportFrom ClassDef Try TryStar Global AsyncFunctionDef AsyncFor AsyncWith
Await Yield YieldFrom MatchClass"""
# Attributes that lead out of tensor code begin so: Python's inner ones, files, global state, hooks.
PREFIXES = """_ f_ gi_ tb_ co_ cr_ ag_ set_ register load save dump numpy tofile from_ storage
untyped_ share_ compile"""
# All that a function may take from a module; a module itself is no value.
MODULES = json.loads((Path(__file__).parent / "tensors.json").read_text())
MODULES |= {"math": " ".join(dir(math)), "itertools": " ".join(dir(itertools))}
SHORT = {"F": "torch.nn.functional", "nn": "torch.nn"}


def module(node):
    """The name of the module that an expression stands for, "torch.nn" for nn; else ""."""
    named = isinstance(node, ast.Name | ast.Attribute)
    first, *others = ast.unparse(node).split(".") if named else [""]
    name = ".".join([SHORT.get(first, first), *others])
    return name if name in MODULES else ""


def complaints(function):
    """What is refused in a function: a list of "line n: ...".

    function: its syntax tree; only its body is read, for only that is taken.
    """
    nodes = [node for statement in function.body for node in ast.walk(statement)]
    owners = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    said = []
    for node in nodes:
        attribute, name = getattr(node, "attr", ""), getattr(node, "id", "")
        owner = module(node.value) if attribute else ""
        if (
            type(node).__name__ in STATEMENTS.split()
            or (name in dir(builtins) and name not in BUILTINS.split())
            or name.startswith("__")
            or (attribute not in ("", "requires_grad") and not isinstance(node.ctx, ast.Load))
            or attribute.startswith(tuple(PREFIXES.split()))
            or (owner and attribute not in MODULES[owner].split())
            or (module(node) and id(node) not in owners)
        ):
            code = ast.unparse(node).splitlines()[0]
            said.append(f"line {node.lineno}: `{code}` is not needed here, and not allowed")
    return said
