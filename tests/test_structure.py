"""How the package is built: what imports what, and what its names are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import blockdrop_min

PACKAGE = Path(blockdrop_min.__file__).parent
METHOD = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
MODULES = sorted(path.stem for path in PACKAGE.rglob("*.py") if path.stem != "__init__")
NAMES = """BlockDrop bound Cost entropy fast force_on free_blocks greedy load load_foreign
policy_cost policy_loss policy_net resnet resnet_cost reward sample static_policy"""
PUBLIC = NAMES.split()


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
def test_the_method_imports_only_the_method_and_of_it_only_what_is_read_before(module):
    words = blockdrop_min.__doc__.replace(",", " ").replace(".", " ").split()
    order = [name for name in words if name in METHOD]  # the docstring says in which to read it
    assert sorted(order) == METHOD
    later = {f"blockdrop_min.{name}" for name in order[order.index(module) :]}
    strangers = ("blockdrop_min.lab", "train", "evaluate")
    found = [name for name in imported(module) if name.startswith(strangers) or name in later]
    assert found == []


@pytest.mark.parametrize("module", MODULES)
def test_no_module_has_the_name_of_a_public_function(module):
    # `import blockdrop_min.x` must not give a function.
    assert module not in PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_importable_and_listed(name):
    assert callable(getattr(blockdrop_min, name))
    assert name in dir(blockdrop_min)


def test_a_name_that_does_not_exist_is_missing_as_python_says_it():
    with pytest.raises(AttributeError, match="module 'blockdrop_min' has no attribute 'shape'"):
        _ = blockdrop_min.shape


def test_the_method_loads_without_what_a_run_needs():
    program = "import sys, blockdrop_min as b; b.reward, b.BlockDrop; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()} | set(done.stdout.split())
    assert not loaded & {"torchvision", "PIL", "rich", "blockdrop_min.lab"}
