"""The recipes for OLMo 2, offline: tiny models under the same names and revisions in a made-up Hugging Face cache."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from ordermerge.yaml_json import read_yaml

pytestmark = pytest.mark.integration
RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SIZES = {
    "olmo-2-0425-1b_stage2": ("allenai/OLMo-2-0425-1B", {"hidden_size": 2048, "intermediate_size": 8192}, 16),
    "olmo-2-1124-7b_stage2": ("allenai/OLMo-2-1124-7B", {"hidden_size": 4096, "intermediate_size": 11008}, 32),
}
METHODS = ("linear", "parameter_selection", "parameter_selection_resample")
# Every recipe, by every command, in one process: what they import takes seconds.
# mergekit asks the hub for a repository's list of files even when all are in the cache: it is given the answer.
PROGRAM = """
import sys
import huggingface_hub
from click.testing import CliRunner
from mergekit.scripts.run_yaml import main as mergekit_yaml
from ordermerge.cli import main
huggingface_hub.list_repo_files = lambda *_, **__: ["config.json", "model.safetensors"]
for recipe in sys.argv[1:]:
    out = "/".join(recipe.split("/")[-2:]).removesuffix(".yml")
    for command, arguments in (
        (main, ["check", recipe, "--explain"]),
        (main, ["merge", recipe, f"ours/{out}", "--quiet"]),
        (mergekit_yaml, [recipe, f"stock/{out}", "--quiet"]),
    ):
        done = CliRunner().invoke(command, arguments)
        print(done.output)
        if done.exit_code:
            sys.exit(f"{arguments}: {done.output} {done.exception!r}")
"""


def revisions(folder: str) -> list[str]:
    """Return the base model's and the sub-models' revisions, as the recipe with resampling names them."""
    recipe = read_yaml(RECIPES / folder / "parameter_selection_resample.yml")
    models = [recipe["base_model"], *(entry["model"] for entry in recipe["models"])]
    assert {model.partition("@")[0] for model in models} == {SIZES[folder][0]}
    return [model.partition("@")[2] for model in models]


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a cache `hub`, and in `ours` and `stock` what all recipes merge its models to."""
    root = tmp_path_factory.mktemp("olmo2")
    for folder, (repository, _, _) in SIZES.items():
        place = root / "hub" / f"models--{repository.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        config = transformers.Olmo2Config(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            pad_token_id=0, bos_token_id=1, eos_token_id=1, tie_word_embeddings=False, dtype="bfloat16",
        )  # fmt: skip
        torch.manual_seed(0)
        base = transformers.Olmo2ForCausalLM(config).bfloat16()
        for number, revision in enumerate(revisions(folder)):
            with torch.no_grad():
                model = transformers.Olmo2ForCausalLM(config).bfloat16()
                for parameter, origin in zip(model.parameters(), base.parameters(), strict=True):
                    moved = torch.rand(parameter.shape) < (0.5 if number else 0)
                    parameter.copy_(torch.where(moved, origin + 0.01 * torch.randn(parameter.shape), origin))
            commit = f"{number:040x}"
            model.save_pretrained(place / "snapshots" / commit)
            (place / "refs" / revision).write_text(commit)
    files = [str(RECIPES / folder / f"{method}.yml") for folder in SIZES for method in METHODS]
    place = {"HF_HOME": str(root), "HF_HUB_OFFLINE": "1"}
    hidden = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_CACHE", "TRANSFORMERS_CACHE")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *files], cwd=root, env={**hidden, **place}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (root / "output.txt").write_text(done.stdout)
    return root


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("folder", SIZES)
def test_recipe_merges_the_revisions_in_the_cache_by_either_command(folder: str, method: str, merged: Path) -> None:
    ours, stock = (load_file(merged / who / folder / method / "model.safetensors") for who in ("ours", "stock"))
    repository = merged / "hub" / f"models--{SIZES[folder][0].replace('/', '--')}"
    commits = [(repository / "refs" / revision).read_text() for revision in revisions(folder)]
    base, *subs = (load_file(repository / "snapshots" / commit / "model.safetensors") for commit in commits)
    assert ours.keys() == stock.keys() == base.keys()
    for name, values in ours.items():
        assert torch.equal(values.view(torch.int16), stock[name].view(torch.int16)), name
        models = torch.stack([sub[name] for sub in subs])
        if method == "linear":
            assert torch.equal(values, models.float().mean(0).bfloat16()), name
        else:
            assert (models == values).any(0).all(), name
        if method.endswith("resample"):
            assert torch.equal(values == base[name], (models == base[name]).all(0)), name


def test_check_explains_each(merged: Path) -> None:
    said = (merged / "output.txt").read_text()
    assert said.count("the recipe is well-formed") == len(SIZES) * len(METHODS)
    assert len(re.findall(r"all tensors \(25\) +0.3333 +0.3333 +0.3333 +1 ", said)) == len(SIZES) * len(METHODS)


@pytest.mark.parametrize("folder", SIZES)
def test_page_counts_parameters_and_names_the_revisions(folder: str) -> None:
    page = (RECIPES / folder / "README.md").read_text()
    _, sizes, layers = SIZES[folder]
    config = transformers.Olmo2Config(
        **sizes, vocab_size=100352, num_hidden_layers=layers, num_attention_heads=layers, tie_word_embeddings=False
    )
    with torch.device("meta"):
        parameters = sum(p.numel() for p in transformers.Olmo2ForCausalLM(config).parameters())
    assert (
        f"{parameters:,} parameters ({4 * parameters / 1e9:.1f} GB in float32, {parameters / 5e8:.1f} GB in bf" in page
    )
    assert f"| download, three sub-models | {12 * parameters / 1e9:.0f} GB | {6 * parameters / 1e9:.0f} GB |" in page
    base, first, *_ = revisions(folder)
    assert f"`{base}`" in page
    assert f"`{first}`" in page
