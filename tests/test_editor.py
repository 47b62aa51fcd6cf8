"""What an editor knows of the package, whose names load only when they are used: it reads the stub and the annotations."""
import ast
import inspect
from pathlib import Path

import jedi
import pytest

import neuronbench as nb

PACKAGE = Path(nb.__file__).parent
PROJECT = jedi.Project(PACKAGE.parent)


def script(line):
    return jedi.Script(f"import neuronbench as nb\n{line}", project=PROJECT)


def test_the_stub_has_all_public_names_and_no_others():
    imported = {alias.asname for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == set(nb.__all__) and (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("begun, name", [("nb.CLIPDi", "CLIPDissect"), ("nb.rec", "record"), ("nb.similarity.soft", "soft_wpmi"), ("nb.world().capt", "captioner")])
def test_an_editor_completes_a_name(begun, name):
    assert name in [completion.name for completion in script(begun).complete()]


@pytest.mark.parametrize("name", ["CLIPDissect", "record", "exemplars", "Target"])
def test_an_editor_shows_the_signature(name):
    [signature] = script(f"nb.{name}(").get_signatures()
    assert [parameter.name for parameter in signature.params] == list(inspect.signature(getattr(nb, name)).parameters)


def test_an_editor_finds_where_every_name_is_defined():
    lost = [name for name in nb.__all__ if not [place for place in script(f"nb.{name}").goto(follow_imports=True) if place.module_path and place.module_path.suffix == ".py"]]
    assert not lost


def test_a_notebook_completes_without_loading_anything():
    names = [completion.name for completion in jedi.Interpreter("nb.CLIPDi", [{"nb": nb}]).complete()]
    assert names == ["CLIPDissect"]
