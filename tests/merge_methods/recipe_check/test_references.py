"""Models that a recipe names by relative paths: from the working directory, else from the recipe's folder."""

from pathlib import Path

import pytest

from ordermerge.errors import UserError
from ordermerge.merge_methods.recipe_check.references import read_recipe

RECIPE = """merge_method: linear
base_model: org/base
models:
- model: here
- model: there
  parameters: {weight: 1}
- model: here+there
- model: {model: {path: there}, lora: {path: org/adapter}}
"""


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe's folder beside the working directory, each with a model."""
    for folder in ("work/here", "shared/there"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "shared" / "recipe.yml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "shared"


def test_what_is_not_in_the_working_directory_is_looked_for_beside_the_recipe(shared: Path) -> None:
    recipe = read_recipe(Path("../shared/recipe.yml"))
    there = str(shared / "there")
    assert recipe["base_model"] == "org/base"  # a hub id
    assert [entry["model"] for entry in recipe["models"]] == [
        "here",
        there,
        f"here+{there}",
        {"model": {"path": there}, "lora": {"path": "org/adapter"}},
    ]
    assert recipe["models"][1]["parameters"] == {"weight": 1}


def test_two_different_folders_of_one_name_are_refused_and_one_reached_twice_is_not(shared: Path) -> None:
    (shared / "here").symlink_to(shared.parent / "work" / "here")
    assert read_recipe(shared / "recipe.yml")["models"][0]["model"] == "here"
    (shared / "here").unlink()
    (shared / "here").mkdir()
    with pytest.raises(UserError) as refused:
        read_recipe(shared / "recipe.yml")
    (problem,) = refused.value.problems  # once, though it is named twice
    assert "`here` is both in the working directory" in problem
    assert "give the one you mean as an absolute path" in problem
    assert "recipe.yml" in str(refused.value)
