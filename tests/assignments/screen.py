"""Reads a submitted function before it runs: what tensor code does not need is refused.

What that is stands in screen.json: Python's functions, and all that may be taken from a module, are
allowed by name; attributes are refused that lead to Python's insides, files, hooks or global state.
It stops accidents and the tricks that stand in solutions.toml. It is no sandbox.
"""

import ast
import builtins
import itertools
import json
import math
from pathlib import Path

LISTS = json.loads((Path(__file__).parent / "screen.json").read_text())
BUILTINS, STATEMENTS, BEGINNINGS = (" ".join(LISTS[name]).split() for name in [*LISTS][:3])
MODULES = {name: " ".join(lines).split() for name, lines in LISTS["modules"].items()}
MODULES |= {"math": dir(math), "itertools": dir(itertools)}
SHORT = {"F": "torch.nn.functional", "nn": "torch.nn"}


def module(node):
    """The name of the module that an expression stands for, "torch.nn" for nn; else ""."""
    named = isinstance(node, ast.Name | ast.Attribute)
    first, dot, others = ast.unparse(node).partition(".") if named else ("", "", "")
    name = SHORT.get(first, first) + dot + others
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
            type(node).__name__ in STATEMENTS
            or (name in dir(builtins) and name not in BUILTINS)
            or name.startswith("__")
            or (attribute not in ("", "requires_grad") and not isinstance(node.ctx, ast.Load))
            or attribute.startswith(tuple(BEGINNINGS))
            or (owner and attribute not in MODULES[owner])
            or (module(node) and id(node) not in owners)  # a module is no value
        ):
            code = ast.unparse(node).splitlines()[0]
            said.append(f"line {node.lineno}: `{code}` is not needed here, and not allowed")
    return said
