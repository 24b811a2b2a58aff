"""What users of mergekit, TRL and lm-eval get wrong: one sentence with file, key, value and remedy, before any work."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from ordermerge.cli import main

TASKS = ("--tasks", "starter", "--include-path", "tasks")
WEIGHT = {"parameters": {"weight": 1}}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What `ordermerge init` writes, and a run directory in which two orders are trained; the working directory."""
    folder = tmp_path_factory.mktemp("project") / "start"
    assert invoke("init", str(folder)).exit_code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        for order in ("0", "1"):
            shutil.copytree("base", f"runs/start/orders/{order}")
        shutil.copy("experiment.yml", "runs/start/experiment.yml")
        Path("broken.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "a", "ans\n')
        Path("empty.jsonl").write_text("")
        Path("adapter").mkdir()
        Path("adapter/adapter_config.json").write_text("{}")
        yield folder


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def changed(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a mapping with dotted keys set; None removes one."""
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        below = changed(content.get(head) or {}, {rest: value}) if rest else value
        content = {name: item for name, item in {**content, head: below}.items() if item is not None}
    return content


# What is changed in `init`'s experiment, and the sentence after the file's name.
EXPERIMENTS: dict[str, tuple[dict[str, Any], str]] = {
    # keys
    "TRL's key at the top": (
        {"learning_rate": 0.001},
        "unknown key `learning_rate`: it belongs under `sft` (`sft: {learning_rate: 0.001}`)",
    ),
    "PEFT's key under sft": (
        {"sft.lora_alpha": 16},
        "`sft.lora_alpha`: TRL's SFTConfig has no such field: it belongs under `lora` (`lora: {lora_alpha: 16}`)",
    ),
    "TRL's name of the model": (
        {"model_name_or_path": "base"},
        "unknown key `model_name_or_path`: it belongs under `model`, as `path` (`model: {path: base}`)",
    ),
    "a misspelt section": ({"evalution": {}}, "unknown key `evalution` (did you mean 'evaluation'?)"),
    "a misspelt field": (
        {"sft.learing_rate": 1},
        "`sft.learing_rate`: TRL's SFTConfig has no such field (did you mean 'learning_rate'?)",
    ),
    "another name for it": (
        {"sft.epochs": 3},
        "`sft.epochs`: TRL's SFTConfig has no such field (did you mean 'num_train_epochs'?)",
    ),
    "rank for r": ({"lora": {"rank": 8}}, "`lora.rank`: PEFT's LoraConfig has no such field (did you mean 'r'?)"),
    "a control's field": (
        {"controls": {"annealed": {"lr": 1}}},
        "`controls.annealed.lr`: TRL's SFTConfig has no such field (did you mean 'learning_rate'?)",
    ),
    "a field of ours": (
        {"sft.output_dir": "out"},
        "`sft.output_dir` cannot be set: `ordermerge` decides where and when a sub-model is written; got 'out', "
        "remove it",
    ),
    "a missing key": ({"data.train": None}, "key `data.train` is missing; write for instance `train: train.jsonl`"),
    "half a template": (
        {"data.completion": None},
        "`data` needs `prompt` and `completion` (templates), or `messages` (a field of chat messages)",
    ),
    # values
    "a path for the model": (
        {"model": "base"},
        "`model` must be a mapping of keys; got 'base'; write for instance `model: {path: base}`",
    ),
    "a number for the orders": (
        {"orders": 4},
        "`orders` must be a mapping of keys; got 4; write for instance `orders: {count: 4}`",
    ),
    "a task for the list": (
        {"evaluation.tasks": "starter"},
        "`evaluation.tasks` must be a list; got 'starter'; write `tasks: [starter]`",
    ),
    "a number in words": ({"orders.count": "four"}, "`orders.count` must be a whole number; got 'four'"),
    "no orders": ({"orders.count": 0}, "`orders.count` must be a number of at least 1; got 0"),
    "text for a number": ({"sft.learning_rate": "fast"}, "`sft.learning_rate` must be a number; got 'fast'"),
    "text for a switch": ({"sft.bf16": "maybe"}, "`sft.bf16` must be true or false; got 'maybe'"),
    "a length below 0": ({"sft.max_length": -1}, "`sft.max_length` must be at least 1, or null for no limit; got -1"),
    "a dtype's short name": (
        {"model.dtype": "bf16"},
        "`model.dtype` must be 'float32', 'bfloat16' or 'float16'; got 'bf16' (did you mean 'bfloat16'?)",
    ),
    "a strategy of TRL's": (
        {"sft.eval_strategy": "epochs"},
        "`sft.eval_strategy` must be 'no', 'steps' or 'epoch'; got 'epochs' (did you mean 'epoch'?)",
    ),
    "a list of merges": (
        {"merges": ["linear"]},
        "`merges` must be a mapping of keys; got ['linear']; write for instance `merges: {average: {merge_method: "
        "linear, parameters: {weight: 1}}}`",
    ),
    "a year for a name": ({"name": 2024}, "`name` must be text; got 2024; write it in quotes: `name: '2024'`"),
    # files and data
    "a misspelt folder": (
        {"model.path": "./bse"},
        "`model.path`: {here}/bse: no such model folder (looked in {here}); did you mean '{here}/base'?",
    ),
    "a hub id that is nowhere": (
        {"model.path": "HuggingFaceTB/SmolLM2-135"},
        "`model.path`: 'HuggingFaceTB/SmolLM2-135': no such folder (looked in {here}); nor is it in the Hugging Face "
        "cache, and the hub cannot be reached; mend the name, or download it where there is a network: `hf download`",
    ),
    "a misspelt data file": (
        {"data.train": "trian.jsonl"},
        "`data.train`: no file trian.jsonl in {here}; did you mean 'train.jsonl'?",
    ),
    "a column that is not there": (
        {"data.prompt": "{quesion}"},
        "{here}/train.jsonl: record 0 has no field `quesion`, which `data.prompt: '{quesion}'` names (did you mean "
        "'question'?) (and 383 more like it)",
    ),
    "no records": ({"data.train": "empty.jsonl"}, "{here}/empty.jsonl: holds no records; give at least one"),
    "a broken line": (
        {"data.train": "broken.jsonl"},
        "{here}/broken.jsonl: line 2 is not valid JSON (Unterminated string starting at at column 19): "
        '{"question": "a", "ans',
    ),
    "a module that is not there": (
        {"lora": {"target_modules": ["q_prj"]}},
        "`lora.target_modules`: the base model has no module 'q_prj' (did you mean 'q_proj'?)",
    ),
    # merges
    "a misspelt method": (
        {"merges": {"a": {"merge_method": "liner"}}},
        "merges.a: unknown `merge_method` 'liner' (did you mean 'linear'?)",
    ),
    "no method": (
        {"merges": {"a": WEIGHT}},
        "merges.a: key `merge_method` is missing; write for instance `merge_method: linear`",
    ),
    "a name that is taken": (
        {"merges": {"order_1": {"merge_method": "linear", **WEIGHT}}},
        "merges.order_1: this name is taken by something else; choose another",
    ),
    "an order that is not there": (
        {"merges": {"a": {"merge_method": "linear", **WEIGHT, "ingredients": {"orders": [0, 7]}}}},
        "merges.a.ingredients.orders: must be `all`, or a list of different orders from 0 to 2; got [0, 7]",
    ),
    # evaluation
    "a misspelt task": (
        {"evaluation.tasks": ["startr"]},
        "evaluation: task 'startr' is unknown (did you mean 'starter'?); looked in {here}/tasks (starter), ",
    ),
    "a GPU that is not there": (
        {"evaluation.device": "cuda:0"},
        "evaluation: device: cuda:0 is not there: torch has no CUDA device on this machine; leave `device` out, or "
        "choose another",
    ),
    "a batch size": (
        {"evaluation.batch_size": "many"},
        "evaluation: batch_size: must be a number of at least 1, or \"auto\"; got 'many'",
    ),
}  # fmt: skip


def one_sentence(done: Result, start: str) -> None:
    """Require a single line that begins so, and exit status 1."""
    assert done.exit_code == 1, done.output
    assert done.stderr.startswith(f"Error: {start}"), done.stderr
    assert done.stderr.count("\n") == 1
    words = ("input should", "valid dictionary", "pydantic", "Traceback", "Section", "instance of", "NoneType")
    assert not any(word.lower() in done.stderr.lower() for word in words)
    assert done.stdout == ""


@pytest.mark.parametrize("mistake", EXPERIMENTS)
def test_mistakes_in_an_experiment(mistake: str, project: Path) -> None:
    changes, sentence = EXPERIMENTS[mistake]
    content = changed(yaml.safe_load((project / "experiment.yml").read_text()), changes)
    Path("mine.yml").write_text(yaml.safe_dump(content))
    done = invoke("run", "mine.yml", "--dry-run", "--runs-dir", "none")
    one_sentence(done, f"mine.yml: {sentence.replace('{here}', str(project))}")
    assert not Path("none").exists()


MODELS = [{"model": "runs/start/orders/0"}, {"model": "runs/start/orders/1"}]
# What is changed in a linear merge of two orders, and the sentence after the file's name.
RECIPES: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt parameter": (
        {"parameters": {"wieght": 1}},
        "unknown parameter `parameters.wieght` for linear (did you mean 'weight'?)",
    ),
    "a parameter at the top": (
        {"parameters": None, "weight": 1},
        "unknown key `weight`: it belongs under `parameters` (`parameters: {weight: ...}`)",
    ),
    "a parameter beside its model": (
        {"models": [{"model": "base", "weight": 1}], "parameters": None},
        "unknown key `models[0].weight`: it belongs under `parameters` (`parameters: {weight: ...}`)",
    ),
    "a key among the parameters": (
        {"parameters.dtype": "bfloat16"},
        "unknown parameter `parameters.dtype` for linear: it belongs at the top level",
    ),
    "models without `model:`": (
        {"models": ["base"]},
        "`models[0]` must be a mapping, each a line `- model: PATH` below `models:`; got 'base'",
    ),
    "a misspelt dtype": ({"dtype": "bfloat"}, "`dtype`: mergekit has no dtype 'bfloat' (did you mean 'bfloat16'?)"),
    "no base model for ours": (
        {"merge_method": "parameter_selection_resample"},
        "`parameter_selection_resample` needs `base_model`, and `models` has none; name the model that the sub-models "
        "were fine-tuned from, or use `parameter_selection` with `resample: 0`",
    ),
    "no base model for TIES": (
        {"merge_method": "ties"},
        "`ties` needs `base_model`, the model that those of `models` were made from; name it, as `base_model: PATH`",
    ),
    "a weight below 0": (
        {"merge_method": "parameter_selection", "parameters.weight": -1},
        "`parameters.weight`: `weight` must be a finite number >= 0; got -1",
    ),
    "a weight in words": ({"parameters.weight": "heavy"}, "`parameters.weight` must be a number; got 'heavy'"),
    "a model that is not there": (
        {"models": [{"model": "runs/start/order/0"}]},
        "model runs/start/order/0: no such folder (looked in {here})",
    ),
    "an adapter for a model": (
        {"models": [{"model": "./adapter"}]},
        "model ./adapter: the folder holds no config.json, only an adapter; write BASE_MODEL+./adapter",
    ),
    "a seed of one model": (
        {"merge_method": "parameter_selection", "models": [{"model": "base", "parameters": {"seed": 1}}]},
        "`models[0].parameters.seed` is ignored there: `seed` is shared by all models, move it to the top-level "
        "`parameters`",
    ),
}


@pytest.mark.parametrize("mistake", RECIPES)
def test_mistakes_in_a_recipe(mistake: str, project: Path) -> None:
    changes, sentence = RECIPES[mistake]
    linear = {"merge_method": "linear", "models": MODELS, "parameters": {"weight": 1}, "dtype": "float32"}
    Path("mine.yml").write_text(yaml.safe_dump(changed(linear, changes)))
    one_sentence(invoke("merge", "mine.yml", "merged"), f"mine.yml: {sentence.replace('{here}', str(project))}")
    assert not Path("merged").exists()


RUN, MODEL, RECIPE = "runs/start", "runs/start/orders/0", "recipe.yml"
# A command, and its sentence.
COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "a run directory to run": (
        ("run", RUN),
        "runs/start: is a run directory, not an experiment; `ordermerge report runs/start` writes its report anew",
    ),
    "a recipe to run": (
        ("run", RECIPE),
        "recipe.yml: is a mergekit recipe, not an experiment; `ordermerge merge recipe.yml OUT` merges it",
    ),
    "a recipe to train": (("train", RECIPE), "recipe.yml: is a mergekit recipe, not an experiment; "),
    "data to run": (
        ("run", "train.jsonl"),
        "train.jsonl: is data, not an experiment; an experiment names it, as `data: {train: train.jsonl}`",
    ),
    "an experiment to merge": (
        ("merge", "experiment.yml", "out"),
        "experiment.yml: is an experiment, not a mergekit recipe; `ordermerge run experiment.yml` trains, merges",
    ),
    "an experiment to report": (
        ("report", "experiment.yml"),
        "experiment.yml: is an experiment, not a run directory; its run directory is runs/start",
    ),
    "a model to report": (
        ("report", MODEL),
        f"{MODEL}: is a model's folder, not a run directory; `ordermerge eval {MODEL} --tasks TASKS` scores it",
    ),
    "a model to merge": (("merge", "base", "out"), "base: is a model's folder, not a mergekit recipe; "),
    "a run directory to eval": (
        ("eval", RUN, *TASKS),
        "runs/start: is a run directory, not a model's folder; a model in it is such as runs/start/orders/0; ",
    ),
    "a run's name to report": (
        ("report", "start"),
        "start: no run directory: it has no experiment.yml (looked in {here}/start); give the folder that `ordermerge "
        "run` or `ordermerge train` made, such as runs/start",
    ),
    "a misspelt file": (("run", "experiments.yml"), "experiments.yml: no such file (looked in {here})"),
    "a misspelt model to eval": (
        ("eval", "./bse", *TASKS),
        "./bse: no such model folder (looked in {here}); did you mean 'base'?; nor is it in the Hugging Face cache",
    ),
    "a model twice": (("eval", "base", "./base", *TASKS), "models: ./base, base listed more than once; list each"),
    "an order that is not there": (
        ("train", "experiment.yml", "--order", "7"),
        "`--order 7`: order 7 does not exist: `orders.count` is 3, so orders are 0 to 2; controls are annealed; name",
    ),
    "a changed key that is unknown": (
        ("run", "experiment.yml", "--set", "learning_rate=1"),
        "experiment.yml --set learning_rate=1: unknown key `learning_rate`: it belongs under `sft`",
    ),
    "a change without a value": (
        ("run", "experiment.yml", "--set", "sft.learning_rate"),
        "`--set sft.learning_rate`: must be KEY=VALUE, such as `--set sft.learning_rate=1e-4`",
    ),
    "a GPU that is not there": (
        ("losses", RUN, "--device", "cuda:0"),
        "--device: cuda:0 is not there: torch has no CUDA device on this machine; leave `device` out, or choose",
    ),
    "results that are not there": (
        ("compare", "runs/start/eval/order_9"),
        "runs/start/eval/order_9: no such folder of results (looked in {here}/runs/start/eval)",
    ),
}


@pytest.mark.parametrize("mistake", COMMANDS)
def test_mistakes_in_a_command(mistake: str, project: Path) -> None:
    arguments, sentence = COMMANDS[mistake]
    one_sentence(invoke(*arguments), sentence.replace("{here}", str(project)))
