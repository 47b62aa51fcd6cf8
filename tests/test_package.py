"""The package as a whole: what importing it costs, what it offers, and that its floors stay in order."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

import neuronbench as nb

PACKAGE = Path(nb.__file__).parent
FLOORS = {"basics": 0, "shapes": 0, "registry": 0, "pictures": 0, "words": 0, "probe": 1, "foundation": 1, "describe": 2, "embedded": 2, "evaluate": 3, "show": 4, "widgets": 5, "workbench": 6, "cli": 7}
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


def _private(name):
    return name.startswith("_") and not name.endswith("_")  # Python's and Jupyter's own names, such as _repr_html_, end so


def _private_names(tree):
    """The underscored names that a file defines: functions, classes, variables, and attributes of its own objects."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) in ("self", "cls"):
            name = node.attr
        else:
            continue
        if _private(name):
            yield name


TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py")) if not path.name.startswith("_")}
PRIVATE = {path: set(_private_names(tree)) for path, tree in TREES.items()}


def _borrowed(path):
    """The underscored names that a file takes from another one of the package: imported, or as an attribute of a module or of an object."""
    others = set().union(*(names for other, names in PRIVATE.items() if other != path)) - PRIVATE[path]
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("neuronbench")):
            yield from (alias.name for alias in node.names if _private(alias.name))
        elif isinstance(node, ast.Attribute) and node.attr in others:
            yield ast.unparse(node)


@pytest.mark.parametrize("path", TREES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_underscored_name_crosses_a_file(path):
    assert not list(_borrowed(path))


def test_a_borrowed_name_is_found(monkeypatch, tmp_path):
    lender, borrower = tmp_path / "lender.py", tmp_path / "borrower.py"
    code = "from .lender import _tool, tool\nfrom torch.nn import _other\ntool._mark = 1\nself._own = tool._elsewhere"
    monkeypatch.setitem(TREES, borrower, ast.parse(code))
    monkeypatch.setitem(PRIVATE, borrower, set(_private_names(TREES[borrower])))
    monkeypatch.setitem(PRIVATE, lender, set(_private_names(ast.parse("def _tool(self):\n    self._mark = 1"))))
    assert list(_borrowed(borrower)) == ["_tool", "tool._mark"] and PRIVATE[borrower] == {"_own"}


SHOWN = ("__init__", "__call__", "__getitem__", "__len__")  # methods that are part of a public signature


def _public_functions(path):
    """(qualified name, node, parameters without self or cls) of a file's public functions and methods."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node, _parameters(node)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and (not method.name.startswith("_") or method.name in SHOWN):
                    static = any(getattr(decorator, "id", "") == "staticmethod" for decorator in method.decorator_list)
                    yield f"{node.name}.{method.name}", method, _parameters(method)[0 if static else 1 :]


def _parameters(node):
    given = node.args
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, [given.vararg, given.kwarg])]


@pytest.mark.parametrize("floor", FLOORS)
def test_public_signatures_are_annotated(floor):
    files = sorted((PACKAGE / floor).rglob("*.py")) if (PACKAGE / floor).is_dir() else [PACKAGE / f"{floor}.py"]
    bare = [f"{path.relative_to(PACKAGE)}: {name}({parameter.arg})" for path in files for name, _, parameters in _public_functions(path)
            for parameter in parameters if parameter.annotation is None]
    bare += [f"{path.relative_to(PACKAGE)}: {name} -> ?" for path in files for name, node, _ in _public_functions(path)
             if node.returns is None and node.name != "__init__"]
    assert not bare
