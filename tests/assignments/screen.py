"""Reads a submitted function before it runs: an allow-list of what tensor code needs.

It stops accidents and the tricks that test_assignments.py lists. It is no sandbox.
"""

import ast
import functools
import itertools
import math
import types

import torch
import torch.nn.functional as F
from torch import nn

MODULES = {"torch": torch, "F": F, "nn": nn, "math": math, "itertools": itertools}
MODULES["functools"] = functools
PASSABLE = (*MODULES.values(), torch.autograd, torch.linalg, torch.special)
BUILTINS = """abs all any bool dict divmod enumerate filter float int isinstance iter len list map
max min pow print range reversed round set slice sorted str sum tuple zip ValueError SystemExit"""
STATEMENTS = """Expr Return Assign AugAssign AnnAssign For While If With FunctionDef Raise Assert
Break Continue Pass"""
# Attributes that lead out of tensor code: Python's inner ones, files, global state, hooks.
FORBIDDEN = (
    "_",
    "f_",
    "gi_",
    "tb_",
    "co_",
    "cr_",
    "ag_",
    "set_",
    "register",
    "load",
    "save",
    "dump",
)
FORBIDDEN += (
    "numpy",
    "tofile",
    "from_",
    "storage",
    "untyped_",
    "share_",
    "compile",
    "manual_",
    "seed",
)


def complaints(function, known):
    """What a function does that no task needs: a list of "line n: ...".

    function: its syntax tree; only its body is read, for only that is taken.
    known: the names that it may use besides its own and Python's harmless ones.
    """
    nodes = [node for statement in function.body for node in ast.walk(statement)]
    names = [node for node in nodes if isinstance(node, ast.Name)]
    own = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    own |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    dotted = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    known = known | own | set(BUILTINS.split())
    why = [(node, complaint(node, known, id(node) in dotted)) for node in nodes]
    return [f"line {node.lineno}: {text}" for node, text in why if text]


def complaint(node, known, is_dotted):
    """What is wrong with one node of the tree, or None.

    is_dotted: whether an attribute of it is taken.
    """
    kind = type(node).__name__
    if (isinstance(node, ast.stmt) and kind not in STATEMENTS.split()) or "Yield" in kind:
        return f"{kind} is not needed here, and not allowed"
    if getattr(node, "decorator_list", None):
        return "a decorator is not allowed"
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in MODULES:
        return f"{node.id} must stay what it is"
    if isinstance(node, ast.Name) and node.id not in known:
        return f"the name {node.id} is not one of this task"
    if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
        return f"nothing may be assigned to .{node.attr}"
    if isinstance(node, ast.Attribute) and node.attr.startswith(FORBIDDEN):
        return f".{node.attr} is not needed here, and not allowed"
    thing = meaning(node)
    if isinstance(thing, types.ModuleType) and (thing not in PASSABLE or not is_dotted):
        return f"{ast.unparse(node)} is a module that is not available here, or not by itself"
    return None


def meaning(node):
    """What a dotted name stands for, if it begins with a module; else None."""
    if isinstance(node, ast.Attribute):
        return getattr(meaning(node.value), node.attr, None)
    return MODULES.get(getattr(node, "id", None))
