"""The package as a whole: what importing it costs, what it offers, and that its floors stay in order."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

import neuronbench as nb

PACKAGE = Path(nb.__file__).parent
FLOORS = {"basics": 0, "pictures": 0, "probe": 1, "foundation": 1, "describe": 2, "embedded": 2, "evaluate": 3, "show": 4, "widgets": 5, "workbench": 6, "cli": 7}
HEAVY = ["torch", "numpy", "pandas", "open_clip", "transformers", "matplotlib", "jupyterlab"]


def test_import_loads_nothing_heavy():
    code = f"import sys, neuronbench; print([name for name in {HEAVY} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert loaded == "[]"


@pytest.mark.parametrize("name", nb.__all__)
def test_every_public_name_resolves(name):
    value = getattr(nb, name)
    assert value.__doc__, f"nb.{name} has no docstring"


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(AttributeError, match="did you mean 'ProbingSet'"):
        nb.ProbeSet


def test_submodules_do_not_shadow_public_names():
    code = "import neuronbench as nb, neuronbench.embedded.world, neuronbench.probe.exemplars; print(callable(nb.world), callable(nb.exemplars))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["True", "True"]


def _imports(path):
    """Paths inside the package that a file imports from, such as ("probe", "images")."""
    package = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            yield (*base, *(node.module or "").split("."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("neuronbench."):
            yield tuple(node.module.split(".")[1:])
        elif isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")[1:]) for alias in node.names if alias.name.startswith("neuronbench."))


@pytest.mark.parametrize("path", sorted(p for p in PACKAGE.rglob("*.py") if not p.name.startswith("_")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_from_floors_below_its_own(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for theirs, *_ in _imports(path):
        assert theirs in (own, "basics") or FLOORS[theirs] < FLOORS[own], f"{path.name} ({own}) imports from {theirs}"
