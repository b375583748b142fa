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

MODULES = {"torch": torch, "F": F, "nn": nn, "math": math}
MODULES |= {"itertools": itertools, "functools": functools}
PASSABLE = (torch, nn, F, torch.autograd, torch.linalg, torch.special, math, itertools, functools)
BUILTINS = set(
    [
        "abs",
        "all",
        "any",
        "bool",
        "dict",
        "divmod",
        "enumerate",
        "filter",
        "float",
        "int",
        "isinstance",
        "len",
        "list",
        "map",
        "max",
        "min",
        "None",
        "pow",
        "print",
        "range",
        "reversed",
        "round",
        "set",
        "slice",
        "sorted",
        "str",
        "sum",
        "tuple",
        "zip",
        "ValueError",
        "TypeError",
        "AssertionError",
        "NotImplementedError",
    ]
)
BANNED = (ast.ClassDef, ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal, ast.Yield, ast.Delete)
BANNED += (ast.YieldFrom, ast.Await, ast.AsyncFunctionDef, ast.Try)
FRAMES = ("_", "f_", "gi_", "tb_", "co_", "cr_", "ag_", "set_", "register", "load", "save", "dump")
FORBIDDEN = set(
    [
        "numpy",
        "tofile",
        "from_file",
        "from_numpy",
        "storage",
        "untyped_storage",
        "share_memory_",
        "compile",
        "hub",
    ]
)
FORBIDDEN |= set(
    [
        "jit",
        "ops",
        "library",
        "script",
        "manual_seed",
        "seed",
        "default_generator",
        "Generator",
        "fork",
    ]
)


def complaints(function, known):
    """What a function does that no task needs: a list of "line n: ...".

    function: its syntax tree; only its body is read, for only that is taken.
    known: the names that it may use besides its own and Python's harmless ones.
    """
    found, known = [], known | BUILTINS | own_names(function)
    nodes = list(itertools.chain(*map(ast.walk, function.body)))
    dotted = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        why = complaint(node, known) or (id(node) not in dotted and alone(node))
        if why:
            found.append(f"line {node.lineno}: {why}")
    return found


def own_names(function):
    """Its arguments, and the names that it gives itself."""
    own = {n.arg for n in ast.walk(function) if isinstance(n, ast.arg)}
    own |= {n.name for n in ast.walk(function) if isinstance(n, ast.FunctionDef)} - {function.name}
    names = [n for n in ast.walk(function) if isinstance(n, ast.Name)]
    return own | {n.id for n in names if isinstance(n.ctx, ast.Store)}


def complaint(node, known):
    """What is wrong with one node of the tree, or None."""
    if isinstance(node, BANNED):
        return f"{type(node).__name__.lower()} is not needed here, and not allowed"
    if isinstance(node, ast.FunctionDef) and node.decorator_list:
        return "a decorator is not allowed"
    if isinstance(node, ast.Name):
        if isinstance(node.ctx, ast.Store) and (node.id in MODULES or node.id[:2] == "__"):
            return f"{node.id} must stay what it is"
        if isinstance(node.ctx, ast.Load) and node.id not in known:
            return f"the name {node.id} is not one of this task"
    if isinstance(node, ast.Attribute):
        if not isinstance(node.ctx, ast.Load):
            return f"nothing may be assigned to .{node.attr}"
        if node.attr.startswith(FRAMES) or node.attr in FORBIDDEN:
            return f".{node.attr} is not needed here, and not allowed"
        return outside(node)
    return None


def named(node):
    """What a dotted name stands for, if it begins with a module; else None."""
    if isinstance(node, ast.Name):
        return MODULES.get(node.id)
    return getattr(named(node.value), node.attr, None) if isinstance(node, ast.Attribute) else None


def outside(node):
    """A complaint if a dotted name leads from torch into a module that is no part of tensor code."""
    thing = named(node)
    if isinstance(thing, types.ModuleType) and thing not in PASSABLE:
        return f"{ast.unparse(node)} is not available here"
    return None


def alone(node):
    """A complaint about a module that is used as a value, and not for one of its functions."""
    loaded = isinstance(getattr(node, "ctx", None), ast.Load)
    if loaded and isinstance(named(node), types.ModuleType):
        return f"{ast.unparse(node)} may only be used as {ast.unparse(node)}.something"
    return None
