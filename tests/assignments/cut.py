"""Cutting Python by its functions: hollow, splice, trim, scan. Syntax trees only, no torch.

A function is named by its place in its module, "policy_loss" or "PolicyNet.embed". No marks stand
in the code: what is cut is a function's body, as it is at that moment.
"""

import ast
import re
import threading

# What a submission may import besides its module's own imports.
IMPORTS = ("import math", "import itertools", "import functools", "import torch.nn.functional as F")
HOLES = ("raise NotImplementedError('task ", "return (float('nan'), float('nan'))")
LEAST = 14  # nodes of a syntax tree from which on two equal ones are no accident


PARSING = threading.Lock()


def parse(source):
    """`ast.parse`, one thread at a time: CPython 3.11's is not safe among several."""
    with PARSING:
        return ast.parse(source)


def find(tree, name):
    """The function of this name in a module's tree, or None."""
    for part in name.split("."):
        tree = next((node for node in tree.body if getattr(node, "name", "") == part), None)
        if tree is None:
            return None
    return tree


def kept_statements(function, guards):
    """How many leading statements stay: the docstring and, if `guards`, refusals."""
    count = int(ast.get_docstring(function) is not None)
    while guards and is_guard(function.body[count]):
        count += 1
    return count


def is_guard(statement):
    """Whether it only refuses: `if ...: raise`, `if x is None: return x`, `check_*(...)`."""
    if not isinstance(statement, ast.If):
        return ast.unparse(statement).startswith("check_")
    last = statement.body[-1]
    is_early_end = isinstance(last, ast.Return) and isinstance(last.value, ast.Name)
    return not statement.orelse and (isinstance(last, ast.Raise) or is_early_end)


def replace_bodies(source, bodies, guards=False):
    """The source with the bodies {name: text} in the places of those functions' own.

    guards: whether refusals of arguments stay; the docstring always does.
    """
    tree, lines = parse(source), source.splitlines()
    for name in sorted(bodies, key=lambda name: -find(tree, name).lineno):  # from the last on
        function = find(tree, name)
        count = kept_statements(function, guards)
        first = function.body[count - 1].end_lineno if count else function.body[0].lineno - 1
        indent = " " * (function.col_offset + 4)
        lines[first : function.end_lineno] = [indent + s for s in bodies[name].splitlines()]
    return "\n".join(lines) + "\n"


def body(source, name):
    """A function's body as text, without its docstring."""
    function = find(parse(source), name)
    if not isinstance(function, ast.FunctionDef):
        raise ValueError(f"the function {name} is missing")
    return "\n".join(map(ast.unparse, function.body[kept_statements(function, False) :]))


def hollow(source, names, hole, guards=True):
    """The source with holes: signature, docstring and guards stay."""
    return replace_bodies(source, dict.fromkeys(names, hole), guards)


def is_open(source, name):
    """Whether a function is still a hole."""
    return any(hole in body(source, name) for hole in HOLES)


def instrument(source, names, task):
    """The source whose named functions note the task's number when they are called."""
    note = f'__import__("builtins").NEEDS.add({task})\n'
    return replace_bodies(source, {name: note + body(source, name) for name in names})


def helpers(submitted, reference):
    """A submission's own helper functions: top level, new, named with one underscore."""
    functions = [n for n in parse(submitted).body if isinstance(n, ast.FunctionDef)]
    return [f for f in functions if re.match("_[^_]", f.name) and not find(reference, f.name)]


def splice(reference, submitted, names):
    """The reference with the named bodies, and helpers, of another source; all else is its own."""
    imports = [s for s in map(ast.unparse, parse(submitted).body) if s in IMPORTS]
    source = replace_bodies(reference, {name: body(submitted, name) for name in names})
    new = map(ast.unparse, helpers(submitted, parse(reference)))
    return "\n".join([*imports, source, *new])


def defines(statement):
    """The names that a top-level statement defines."""
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return {statement.name}
    names = [n for n in ast.walk(statement) if isinstance(n, ast.Name)]
    return {n.id for n in names if isinstance(n.ctx, ast.Store)}


def defined(source):
    """All names that a module defines at its top level."""
    return set().union(*map(defines, parse(source).body))


def reach(source, wanted):
    """All names that the wanted ones of a module mention, directly or not, themselves included."""
    statements = parse(source).body
    reached, new = set(), set(wanted)
    while new:
        reached |= new
        nodes = [n for s in statements if defines(s) & new for n in ast.walk(s)]
        # An argument of a test may be a fixture.
        new = {getattr(n, "id", getattr(n, "arg", None)) for n in nodes} - reached
    return reached


def trim(source, wanted):
    """The module with those of its definitions only that the wanted ones reach."""
    reached, kept = reach(source, wanted), []
    for statement in parse(source).body:
        if isinstance(statement, ast.ImportFrom):
            statement.names = [a for a in statement.names if (a.asname or a.name) in reached]
            kept += [ast.unparse(statement)] if statement.names else []
        elif not defines(statement) - reached or defines(statement) & reached:
            decorators = getattr(statement, "decorator_list", [])
            first = min(node.lineno for node in (statement, *decorators)) - 1
            kept.append("\n".join(source.splitlines()[first : statement.end_lineno]))
    return "\n\n".join(kept) + "\n"


def fingerprints(tree):
    """Every part of LEAST nodes or more, all variables called alike: {it: its code}."""
    found = {}
    for part in ast.walk(tree):
        nodes = [n for n in ast.walk(part) if not isinstance(n, ast.expr_context)]
        if isinstance(part, (ast.stmt, ast.expr)) and len(nodes) >= LEAST:
            alike = re.sub(r"(Name\(id=|arg\(arg=)'\w+'", r"\1'_'", ast.dump(part))
            found[alike] = ast.unparse(part)
    return found


def leaks(bodies, folder):
    """What a folder's files still show of the bodies that were cut: a list of "file: code"."""
    parts = [s for text in bodies for s in parse(text).body if not is_guard(s)]
    secret = set().union(*map(fingerprints, parts))
    hits = []
    for path in sorted(folder.rglob("*.py")):
        shown = fingerprints(parse(path.read_text()))
        hits += [f"{path.relative_to(folder)}: {shown[part]}" for part in shown if part in secret]
    return hits
