"""Where a recipe's models are and how they are written: the cache, links, every form of a path, code of their own."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from ordermerge.cli import main

pytestmark = pytest.mark.integration
CODE = {
    "configuration_my.py": "from transformers import LlamaConfig\n\n\nclass MyConfig(LlamaConfig):\n"
    "    model_type = 'my_llama'\n",
    "modeling_my.py": "from transformers import LlamaForCausalLM\n\nfrom .configuration_my import MyConfig\n\n\n"
    "class MyForCausalLM(LlamaForCausalLM):\n    config_class = MyConfig\n",
}
AUTO = {"AutoConfig": "configuration_my.MyConfig", "AutoModelForCausalLM": "modeling_my.MyForCausalLM"}


@pytest.fixture
def models(family: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return copies of a base model and two sub-models in the working directory."""
    monkeypatch.chdir(tmp_path)
    return [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in family]


def write_recipe(models: list[Any], base: Any = None, **more: Any) -> Path:
    recipe = {"merge_method": "parameter_selection", "models": [{"model": m} for m in models], **more}
    Path("r.yml").write_text(yaml.safe_dump(recipe | ({"base_model": base} if base else {})))
    return Path("r.yml")


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def merge(recipe: Path, out: str, *options: str) -> bytes:
    done = command("merge", recipe, out, "--quiet", *options)
    assert done.exit_code == 0, done.output
    return (Path(out) / "model.safetensors").read_bytes()


def test_every_way_to_write_a_model_is_the_same_model(models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    expected = merge(write_recipe([str(model) for model in models[1:]]), "out")
    forms: list[Any] = [
        "sub0/",
        "./sub0",
        "~/sub0",
        {"model": {"path": "sub0"}},
        {"model": {"path": "~/sub0/"}},
        {"model": "~/sub0"},
    ]
    for form in forms:
        checked = command("check", write_recipe([form, "sub1"]))
        assert checked.exit_code == 0, (form, checked.output)
    for form in forms[-2:]:
        assert merge(write_recipe([form, "sub1"]), "again") == expected, form


def test_folders_with_mergekits_signs_in_their_names_merge(models: list[Path]) -> None:
    expected = merge(write_recipe(["sub0", "sub1"]), "out")
    for index, name in enumerate(("lr+1e-5", "sub@home", "a+b@c")):
        shutil.copytree("sub0", name)
        for form in (name, str(Path(name).resolve())) if name.count("+") + name.count("@") < 2 else ():
            assert merge(write_recipe([form, "sub1"]), f"{index}") == expected, form
        assert merge(write_recipe([{"model": {"path": name}}, "sub1"]), f"out{index}") == expected, name


def test_long_forms_of_parameters_are_checked_and_merged(models: list[Path]) -> None:
    plain = merge(write_recipe(["sub0", "sub1"], parameters={"weight": 1, "seed": 5}), "plain")
    long = {"weight": [{"filter": "mlp", "value": 1}, {"value": 1}], "seed": {"value": 5}}
    recipe = write_recipe(["sub0", "sub1"], parameters=long)
    assert command("check", recipe).exit_code == 0
    assert merge(recipe, "long") == plain
    recipe = write_recipe(["sub0", "sub1"], parameters={"weight": {"value": -1}})
    assert "`parameters.weight`: `weight` must be a finite number >= 0; got -1" in command("check", recipe).output


def test_whole_file_is_merged_where_an_index_of_an_older_save_is_beside_it(models: list[Path]) -> None:
    expected = merge(write_recipe(["sub0", "sub1"]), "out")
    base = load_file("base/model.safetensors")
    save_file(base, "sub0/model-00001-of-00001.safetensors", {"format": "pt"})
    weight_map = dict.fromkeys(base, "model-00001-of-00001.safetensors")
    Path("sub0/model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    done = command("merge", write_recipe(["sub0", "sub1"]), "again", "--quiet")
    assert done.exit_code == 0
    assert "warning: sub0 holds weights twice: model.safetensors is read, as transformers does" in done.output
    assert Path("again/model.safetensors").read_bytes() == expected


def test_hub_ids_in_the_cache_merge_offline_with_their_companions(
    models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = merge(write_recipe(["sub0", "sub1"], "base"), "out")
    (models[1] / "extra.txt").write_text("of the first")
    for model in models:
        repository = Path.cwd() / "cache" / f"models--org--{model.name}"
        (repository / "refs").mkdir(parents=True)
        for ref in ("main", "v1"):
            (repository / "refs" / ref).write_text("abc")
        shutil.move(model, repository / "snapshots" / "abc")
    recipe = write_recipe(["org/sub0", "org/sub1@v1"], "org/base")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path.cwd() / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert merge(recipe, "hub") == expected
    assert Path("hub/extra.txt").read_text() == "of the first"
    assert "- org/base\n" in Path("hub/README.md").read_text()
    done = command("merge", write_recipe(["org/sub0", "org/none"], "org/base"), "none")
    assert done.exit_code == 1
    assert f"Error: model org/none: no such folder (looked in {Path.cwd()})" in done.output
    assert "this machine is to stay offline (HF_HUB_OFFLINE)" in done.output
    assert not Path("none").exists()


def test_models_with_code_of_their_own_need_a_word_and_keep_it(models: list[Path]) -> None:
    for model in models:
        for name, text in CODE.items():
            (model / name).write_text(text)
        config = json.loads((model / "config.json").read_text())
        config |= {"architectures": ["MyForCausalLM"], "model_type": "my_llama", "auto_map": AUTO}
        (model / "config.json").write_text(json.dumps(config))
    recipe = write_recipe(["sub0", "sub1"], "base")
    wanted = "model base has code of its own, which is run only if you allow it: `--trust-remote-code`"
    checked = command("check", recipe)
    assert checked.exit_code == 0
    assert wanted in checked.output
    refused = command("merge", recipe, "out")
    assert refused.exit_code == 1
    assert wanted in refused.output
    for options in (["--trust-remote-code"], ["--trust-remote-code", "--by-name"]):
        merge(recipe, "out", *options)
        assert {name: Path("out", name).read_text() for name in CODE} == CODE
        config = json.loads(Path("out/config.json").read_text())
        assert config["auto_map"] == AUTO
        loaded = transformers.AutoModelForCausalLM.from_pretrained("out", trust_remote_code=True)
        assert type(loaded).__name__ == "MyForCausalLM"


def test_values_that_are_no_numbers_are_found_wherever_they_are(models: list[Path]) -> None:
    tensors = load_file("sub1/model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name][0, 0] = float("nan")  # the check looks at the middle
    save_file(tensors, "sub1/model.safetensors", {"format": "pt"})
    recipe = write_recipe(["sub0", "sub1"])
    assert command("check", recipe).exit_code == 0
    done = command("merge", recipe, "out", "--quiet")
    assert done.exit_code == 1
    assert f"model sub1: `{name}` holds NaN values (a training that diverged?); leave it out" in done.output
    assert "Traceback" not in done.output
    assert not Path("out").exists()
    assert torch.isnan(tensors[name]).sum() == 1


def test_a_shared_recipe_finds_the_models_beside_it_from_anywhere(
    models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(["sub0", "sub1"]).resolve()
    expected = merge(recipe, "out")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert command("check", recipe).exit_code == 0
    assert merge(recipe, "out") == expected
    assert str(models[0].parent) not in Path("out/README.md").read_text()
    Path("sub0").mkdir()  # another one of that name
    refused = command("merge", recipe, "out2")
    assert refused.exit_code == 1
    assert "`sub0` is both in the working directory" in refused.output
