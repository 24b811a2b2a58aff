"""docs/contributing_a_method.md works as printed: its code is taken from the page and run."""

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from mergekit.merge_methods import registry
from mergekit.scripts.run_yaml import main as mergekit_yaml
from safetensors.torch import load_file

from ordermerge import merge_methods
from ordermerge.merge_methods.recipe_check.check import check_recipe

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "contributing_a_method.md").read_text(encoding="utf-8")
BLOCKS: dict[str, str] = dict(re.findall(r"^`([^`\n]+)`\n\n```\w+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
METHOD = "merge_methods/coordinate_median.py"
TEST = "tests/merge_methods/test_coordinate_median.py"


def load(path: Path, name: str, code: str) -> ModuleType:
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def add_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Return a function that makes code importable as the page's module."""

    def add(code: str) -> ModuleType:
        name = "ordermerge.merge_methods.coordinate_median"
        module = load(tmp_path / "coordinate_median.py", name, code)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return add


@pytest.fixture
def registered(add_method: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the page's module, its method registered as the page says, until the test ends."""
    module = add_method(BLOCKS[METHOD])
    scope: dict[str, Any] = dict(vars(merge_methods))
    exec(BLOCKS["merge_methods/__init__.py"], scope)
    assert scope["METHODS"] == (*merge_methods.METHODS, module.coordinate_median_merge)
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(merge_methods, "METHODS", scope["METHODS"])
    merge_methods.register_methods()
    return module


def run_page_tests(directory: Path) -> int:
    module = load(directory / "page_tests.py", "page_tests", BLOCKS[TEST])
    tests = [test for name, test in vars(module).items() if name.startswith("test_")]
    for test in tests:
        test()
    return len(tests)


def test_page_has_the_blocks_that_are_tested() -> None:
    assert set(BLOCKS) == {METHOD, "merge_methods/__init__.py", TEST, "recipes/coordinate_median.yml"}
    assert PAGE.count("```python") == 3


@pytest.mark.usefixtures("registered")
def test_tests_of_the_page_pass(tmp_path: Path) -> None:
    assert run_page_tests(tmp_path) == 3


@pytest.mark.parametrize("wrong", [".mean(dim=0)", ".max(dim=0).values", "[0]"])
def test_tests_of_the_page_find_a_wrong_method(
    wrong: str, add_method: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    assert ".median(dim=0).values" in BLOCKS[METHOD]
    add_method(BLOCKS[METHOD].replace(".median(dim=0).values", wrong))
    with pytest.raises(AssertionError):
        run_page_tests(tmp_path)


@pytest.mark.integration
@pytest.mark.usefixtures("registered")
def test_recipe_of_the_page_merges_checkpoints(make_family: Callable[..., list[Path]], tmp_path: Path) -> None:
    base, *models = make_family()
    recipe = yaml.safe_load(BLOCKS["recipes/coordinate_median.yml"])
    recipe["base_model"] = str(base)
    for entry, model in zip(recipe["models"], models, strict=True):
        entry["model"] = str(model)
    assert check_recipe(recipe) == []
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    done = CliRunner().invoke(mergekit_yaml, [str(tmp_path / "recipe.yml"), str(tmp_path / "out"), "--quiet"])
    assert done.exit_code == 0, done.exception
    tensors = [load_file(model / "model.safetensors") for model in models]
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert merged.keys() == tensors[0].keys()
    for name, tensor in merged.items():
        ranked = torch.stack([model[name].double() for model in tensors]).sort(dim=0).values
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor.double(), ranked[1]), name
    assert "Coordinate-wise Median" in (tmp_path / "out" / "README.md").read_text()


def test_method_of_the_page_is_gone_after_the_tests() -> None:
    assert "coordinate_median" not in {method.spec.name for method in registry.registered_methods()}
    assert "ordermerge.merge_methods.coordinate_median" not in sys.modules
