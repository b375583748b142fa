"""How the package is built: what imports what, and what its names are."""

import ast
from pathlib import Path

import pytest

import blockdrop_min

PACKAGE = Path(blockdrop_min.__file__).parent
METHOD = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
MODULES = sorted(path.stem for path in PACKAGE.rglob("*.py") if path.stem != "__init__")
PUBLIC = [
    "BlockDrop",
    "bound",
    "Cost",
    "entropy",
    "fast",
    "force_on",
    "free_blocks",
    "greedy",
    "load",
    "load_foreign",
    "policy_cost",
    "policy_loss",
    "policy_net",
    "resnet",
    "resnet_cost",
    "reward",
    "sample",
    "static_policy",
]


def imported(module):
    """The modules that a module of the method imports, anywhere in it, as absolute names."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["blockdrop_min" * bool(node.level), node.module]))
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("module", METHOD)
def test_the_method_imports_only_the_method(module):
    strangers = ("blockdrop_min.lab", "train", "evaluate")
    found = [name for name in imported(module) if name.startswith(strangers)]
    assert found == []


@pytest.mark.parametrize("module", METHOD)
def test_the_method_imports_only_what_is_read_before_it(module):
    order = [name for name in reading_order() if name in METHOD]
    assert sorted(order) == METHOD
    later = order[order.index(module) :]
    found = [name for name in imported(module) if name in {f"blockdrop_min.{x}" for x in later}]
    assert found == []


def reading_order():
    """The words of the package's docstring, which names its modules in the order to read them."""
    return blockdrop_min.__doc__.replace(",", " ").replace(".", " ").split()


@pytest.mark.parametrize("module", MODULES)
def test_no_module_has_the_name_of_a_public_function(module):
    # `import blockdrop_min.x` must not give a function.
    assert module not in PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_importable_from_the_package(name):
    assert callable(getattr(blockdrop_min, name))
