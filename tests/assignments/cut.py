"""Cutting Python by its functions: hollow, splice, trim, scan. Text and syntax trees only, no torch.

A function is named by its place in its module, "policy_loss" or "PolicyNet.embed". No marks stand
in the code: what is cut is a function's body, as it is at that moment.
"""

import ast
import re
from pathlib import Path

IMPORTS = ("import math", "import itertools", "import functools", "import torch")
IMPORTS += ("import torch.nn.functional as F", "from torch import nn")  # what a submission may add
LEAST = 14  # nodes of a syntax tree from which on two equal ones are no accident


def find(tree, name):
    """The function of this name in a module's tree, or None."""
    for part in name.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef)
        named = [n for n in tree.body if isinstance(n, kinds) and n.name == part]
        if not named:
            return None
        tree = named[-1]
    return tree


def body_after(function, guards):
    """The number of leading statements that stay: the docstring and, if `guards`, refusals."""
    count = int(ast.get_docstring(function) is not None)
    while guards and count < len(function.body) - 1 and is_guard(function.body[count]):
        count += 1
    return count


def is_guard(statement):
    """Whether a statement only refuses arguments: `if ...: raise`, `if x is None: return x`, `check_*(...)`."""
    if isinstance(statement, ast.If):
        last = statement.body[-1]
        returns_it = isinstance(last, ast.Return) and isinstance(last.value, ast.Name)
        return not statement.orelse and (isinstance(last, ast.Raise) or returns_it)
    return ast.unparse(statement).startswith("check_")


def replace_bodies(source, names, new_body):
    """The source with the body of each named function replaced by the text new_body(function)."""
    tree, lines = ast.parse(source), source.splitlines()
    functions = [find(tree, name) for name in names]
    if None in functions:
        raise ValueError(f"there is no function {names[functions.index(None)]}")
    for function in sorted(functions, key=lambda f: -f.lineno):
        kept, text = new_body(function)
        first = function.body[kept - 1].end_lineno if kept else function.body[0].lineno - 1
        indent = " " * (function.col_offset + 4)
        lines[first : function.end_lineno] = [indent + line for line in text.splitlines()]
    return "\n".join(lines) + "\n"


def hollow(source, names, message, guards=True):
    """The source with holes: signature, docstring and guards stay, the rest raises NotImplementedError."""
    hole = f'raise NotImplementedError("{message}")'
    return replace_bodies(source, names, lambda f: (body_after(f, guards), hole))


def instrument(source, names, task):
    """The source whose named functions note the task's number in builtins.NEEDS when they are called."""

    def noting(function):
        kept = body_after(function, guards=False)
        rest = "\n".join(ast.unparse(statement) for statement in function.body[kept:])
        return kept, f'__import__("builtins").NEEDS.add({task})\n{rest}'

    return replace_bodies(source, names, noting)


def is_open(source, name):
    """Whether a function is still a hole, or missing."""
    function = find(ast.parse(source), name)
    return function is None or "NotImplementedError('task " in ast.unparse(function)


def helpers_of(tree, reference):
    """A submission's own helper functions: top level, named with one underscore, new."""
    defined = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name[:1] == "_"]
    return [f for f in defined if f.name[:2] != "__" and find(reference, f.name) is None]


def splice(reference, submitted, names):
    """The reference's source with the bodies of the named functions, and new helpers, taken from another source.

    Decorators, signatures and all else are the reference's.
    Raises ValueError if a function is missing or has other arguments.
    """
    tree, theirs = ast.parse(reference), ast.parse(submitted)
    for name in names:
        ours, other = find(tree, name), find(theirs, name)
        if not isinstance(other, ast.FunctionDef):
            raise ValueError(f"{name} is missing")
        if [a.arg for a in ast.walk(ours.args) if isinstance(a, ast.arg)] != [
            a.arg for a in ast.walk(other.args) if isinstance(a, ast.arg)
        ]:
            raise ValueError(
                f"{name} takes ({ast.unparse(other.args)}); it must take ({ast.unparse(ours.args)})"
            )
    by_line = {find(tree, name).lineno: find(theirs, name) for name in names}

    def taken(function):
        return 0, "\n".join(map(ast.unparse, by_line[function.lineno].body))

    source = replace_bodies(reference, names, taken)
    helpers = [ast.unparse(f) for f in helpers_of(theirs, tree)]
    imports = [text for text in map(ast.unparse, theirs.body) if text in IMPORTS]
    return "\n".join([*imports, source, *helpers])


def same(reference, submitted, names):
    """Whether all named functions are the reference's, word for word, and long enough for this to mean something."""

    def statements(source, name):
        function = find(ast.parse(source), name)
        return [] if function is None else function.body[body_after(function, False) :]

    pairs = [(statements(reference, n), statements(submitted, n)) for n in names]
    equal = all([*map(ast.dump, a)] == [*map(ast.dump, b)] for a, b in pairs)
    return equal and sum(len(a) for a, _ in pairs) >= 4


def names_in(node):
    """All names that a piece of code mentions, arguments of functions (pytest's fixtures) included."""
    found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return found | {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}


def defines(statement):
    """The names that a top-level statement defines."""
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return {statement.name}
    stored = (n for n in ast.walk(statement) if isinstance(n, ast.Name))
    return {n.id for n in stored if isinstance(n.ctx, ast.Store)}


def reach(source, wanted):
    """All top-level names of a module that the wanted ones mention, directly or not, themselves included."""
    statements = ast.parse(source).body
    reached, new = set(), set(wanted)
    while new:
        reached |= new
        found = [names_in(s) for s in statements if defines(s) & new]
        new = set().union(*found) - reached
    return reached


def trim(source, wanted):
    """The module with those of its definitions only that the wanted ones reach."""
    reached, lines, kept = reach(source, {*wanted, "pytestmark"}), source.splitlines(), []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.ImportFrom):
            statement.names = [a for a in statement.names if (a.asname or a.name) in reached]
            kept += [ast.unparse(statement)] if statement.names else []
        elif isinstance(statement, ast.Import) or not defines(statement):
            kept.append(ast.unparse(statement))
        elif defines(statement) & reached:
            decorators = getattr(statement, "decorator_list", [])
            first = min([statement.lineno, *(d.lineno for d in decorators)]) - 1
            kept.append("\n".join(lines[first : statement.end_lineno]))
    return "\n\n".join(kept) + "\n"


def fingerprints(node):
    """Every statement and expression of LEAST nodes or more, with all variables called alike: text -> its code."""
    found = {}
    for part in ast.walk(node):
        nodes = [n for n in ast.walk(part) if not isinstance(n, ast.expr_context)]
        if isinstance(part, (ast.stmt, ast.expr)) and len(nodes) >= LEAST:
            text = re.sub(r"(Name\(id=|arg\(arg=)'\w+'", r"\1'_'", ast.dump(part))
            found[text] = ast.unparse(part)
    return found


def leaks(cut, folder):
    """What a folder still shows of the bodies that were cut: a list of "file: code".

    cut: sources of functions.
    """
    bodies = [ast.parse(source).body[0].body for source in cut]
    secret = {text for body in bodies for s in body if not is_guard(s) for text in fingerprints(s)}
    hits = []
    for path in sorted(Path(folder).rglob("*.py")):
        shown = fingerprints(ast.parse(path.read_text()))
        hits += [f"{path.relative_to(folder)}: {shown[text]}" for text in shown if text in secret]
    return hits
