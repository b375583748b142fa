"""Cutting Python by its functions: find, replace, scan. Syntax trees only, no torch.

A function is named by its place in its module, "policy_loss" or "PolicyNet.embed". No marks stand
in the code: what is cut is a function's body, as it is at that moment.
"""

import ast
import hashlib
import re

LEAST = 14  # nodes of a syntax tree from which on two equal ones are no accident


def find(tree, name):
    """The function of this name in a module's tree. Raises ValueError if there is none."""
    for part in name.split("."):  # the last of several counts, as it does for Python
        found = (node for node in reversed(tree.body) if getattr(node, "name", "") == part)
        tree = next(found, None)
        if tree is None:
            raise ValueError(f"the function {name} is missing")
    return tree


def is_guard(statement):
    """Whether it only refuses: `if ...: raise ...`, or `check_...(...)`."""
    if isinstance(statement, ast.If):
        return isinstance(statement.body[-1], ast.Raise)
    return ast.unparse(statement).startswith("check_")


def kept_statements(function, guards):
    """How many leading statements stay: the docstring and, if `guards`, refusals."""
    count = int(ast.get_docstring(function) is not None)
    while guards and count < len(function.body) and is_guard(function.body[count]):
        count += 1
    return count


def replace_bodies(source, bodies, guards=False):
    """The source with the bodies {name: text} in the places of those functions' own.

    guards: whether refusals of arguments stay; the docstring always does.
    """
    tree, lines = ast.parse(source), source.split("\n")
    for name in sorted(bodies, key=lambda name: -find(tree, name).lineno):  # from the last on
        function = find(tree, name)
        count = kept_statements(function, guards)
        first = function.body[count - 1].end_lineno if count else function.body[0].lineno - 1
        indent = " " * (function.col_offset + 4)
        lines[first : function.end_lineno] = [indent + s for s in bodies[name].split("\n")]
    return "\n".join(lines)


def statements(tree, name, guards=False):
    """A function's body without its docstring and, if `guards`, without refusals: syntax trees."""
    function = find(tree, name)
    return function.body[kept_statements(function, guards) :]


def body(tree, name, guards=False):
    """The same as text."""
    return "\n".join(map(ast.unparse, statements(tree, name, guards)))


def rest(source, names):
    """A fingerprint of what stands outside the bodies of the named functions, spaces aside."""
    source = replace_bodies(source, dict.fromkeys(names, "pass"))
    return hashlib.sha256("".join(source.split()).encode()).hexdigest()


def fingerprints(tree):
    """Every part of LEAST nodes or more, all variables called alike: {it: its code}."""
    found = {}
    for part in ast.walk(tree):
        size = sum(not isinstance(node, ast.expr_context) for node in ast.walk(part))
        if isinstance(part, (ast.stmt, ast.expr)) and size >= LEAST:
            alike = re.sub(r"(Name\(id=|arg\(arg=)'\w+'", r"\1'_'", ast.dump(part))
            found[alike] = ast.unparse(part)
    return found


def leaks(bodies, folder):
    """What a folder's files still show of the bodies that were cut: a list of "file: code"."""
    parts = [statement for text in bodies for statement in ast.parse(text).body]
    secret = set().union(*(fingerprints(part) for part in parts if not is_guard(part)))
    hits = []
    for path in sorted(folder.rglob("*.py")):
        shown = fingerprints(ast.parse(path.read_bytes()))
        hits += [f"{path.relative_to(folder)}: {shown[part]}" for part in shown if part in secret]
    return hits
