"""`ordermerge merge --adapter`: adapters in, an adapter out, which PEFT loads and which is the dense merge."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from ordermerge.cli import main

pytestmark = pytest.mark.integration
TOKENS = torch.arange(3, 35)[None]
LORA = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def base(make_family: Callable[..., list[Path]]) -> Path:
    return make_family(count=0, dtype=torch.float32)[0]


def make_adapter(base: Path, folder: Path, seed: int = 0, **settings: Any) -> Path:
    """Write an adapter as PEFT saves it, all of its matrices random."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **{**LORA, **settings}))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [make_adapter(base, tmp_path_factory.mktemp("adapter") / f"order_{k}", k) for k in range(2)]


def write_recipe(path: Path, base: Path, adapters: Sequence[Path], **more: Any) -> Path:
    entries = [{"model": f"{base}+{adapter}"} for adapter in adapters]
    recipe = {"merge_method": "linear", "models": entries, "parameters": {"weight": 1}, "dtype": "float32", **more}
    path.write_text(yaml.safe_dump(recipe))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["merge", *map(str, arguments), "--quiet"])


def merge(recipe: Path, out: Path, *options: object) -> Result:
    done = run(recipe, out, "--adapter", *options)
    assert done.exit_code == 0, done.output
    return done


def refusal(recipe: Path, *options: object) -> str:
    out = recipe.with_suffix("")
    done = run(recipe, out, "--adapter", *options)
    assert done.exit_code == 1, done.output
    assert not out.exists()
    assert not list(recipe.parent.glob(".*"))
    return done.output


def logits(model: Path, adapter: Path | None = None) -> torch.Tensor:
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(model)
    if adapter:
        loaded = peft.PeftModel.from_pretrained(loaded, str(adapter))
    with torch.no_grad():
        return loaded.eval()(TOKENS).logits  # type: ignore[no-any-return]


def assert_is_dense_merge(base: Path, recipe: Path, out: Path) -> None:
    merge(recipe, out)
    assert run(recipe, out.with_name("dense")).exit_code == 0
    expected = logits(out.with_name("dense"))
    assert (logits(base, out) - expected).abs().max() < 1e-5
    assert (logits(base) - expected).abs().max() > 1e-2  # the adapters do something


def test_average_is_exact_at_the_rank_of_all(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yml", base, adapters)
    assert "an adapter of rank 4, which is the merge exactly" in merge(recipe, tmp_path / "out").output
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 4, False)
    assert config["target_modules"] == json.loads((adapters[0] / "adapter_config.json").read_text())["target_modules"]
    assert config["base_model_name_or_path"] == str(base)
    assert_is_dense_merge(base, recipe, tmp_path / "out")


def test_average_is_that_of_pefts_concatenation(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    merge(write_recipe(tmp_path / "recipe.yml", base, adapters), tmp_path / "out")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(model, str(adapters[0]), "0")
    model.load_adapter(str(adapters[1]), "1")
    model.add_weighted_adapter(["0", "1"], [0.5, 0.5], "mean", combination_type="cat")
    model.load_adapter(str(tmp_path / "out"), "ours")
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            assert torch.allclose(module.get_delta_weight("ours"), module.get_delta_weight("mean"), atol=1e-6)


@pytest.mark.parametrize(
    "more",
    [
        {"parameters": {"weight": [0.2, 1]}},
        {"parameters": {"weight": [{"filter": "q_proj", "value": 3}, {"value": 1}]}},
        {"merge_method": "task_arithmetic", "parameters": {"weight": 0.7, "lambda": 1.5}},
        {"merge_method": "task_arithmetic", "parameters": {"weight": 0.7, "normalize": True}},
    ],
    ids=["gradient", "filter", "task arithmetic", "normalized"],
)
def test_weights_are_mergekits(more: dict[str, Any], base: Path, adapters: list[Path], tmp_path: Path) -> None:
    entries = [{"model": f"{base}+{adapters[0]}"}, {"model": f"{base}+{adapters[1]}", "parameters": {"weight": 0.25}}]
    more = {"base_model": str(base), **more} if "merge_method" in more else more
    assert_is_dense_merge(
        base, write_recipe(tmp_path / "recipe.yml", base, [], models=entries, **more), tmp_path / "out"
    )


def test_base_model_in_the_average_counts(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    entries = [*({"model": f"{base}+{adapter}"} for adapter in adapters), {"model": str(base)}]
    recipe = write_recipe(tmp_path / "recipe.yml", base, [], models=entries)
    assert_is_dense_merge(base, recipe, tmp_path / "out")


def test_adapters_that_differ_in_rank_scaling_and_modules(base: Path, tmp_path: Path) -> None:
    different = {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ["v_proj", "up_proj"]}
    patterns = {"rank_pattern": {"layers.0.mlp.up_proj": 5}, "alpha_pattern": {"up_proj": 7}}
    models = [make_adapter(base, tmp_path / "a", 1), make_adapter(base, tmp_path / "b", 2, **different, **patterns)]
    recipe = write_recipe(tmp_path / "recipe.yml", base, models)
    assert_is_dense_merge(base, recipe, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"]
    ranks = {**dict.fromkeys(config["target_modules"], config["r"]), **config["rank_pattern"]}
    layer = "model.layers.0"
    wanted = {"self_attn.q_proj": 2, "self_attn.v_proj": 5, "mlp.up_proj": 5}
    assert {module: ranks[f"{layer}.{module}"] for module in wanted} == wanted
    assert ranks["model.layers.1.mlp.up_proj"] == 3


def test_adapted_embedding_of_untied_model(base: Path, tmp_path: Path) -> None:
    targets = {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}
    models = [make_adapter(base, tmp_path / str(k), k, **targets) for k in range(2)]
    assert_is_dense_merge(base, write_recipe(tmp_path / "recipe.yml", base, models), tmp_path / "out")


def test_transposed_matrices(make_family: Callable[..., list[Path]], tmp_path: Path) -> None:
    (base,) = make_family("gpt2", count=0, dtype=torch.float32)
    settings = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    models = [make_adapter(base, tmp_path / str(k), k, **settings) for k in range(2)]
    recipe = write_recipe(tmp_path / "recipe.yml", base, models)
    assert_is_dense_merge(base, recipe, tmp_path / "out")
    recipe = write_recipe(tmp_path / "ties.yml", base, models, merge_method="ties", base_model=str(base))
    done = merge(recipe, tmp_path / "low", "--rank", 32, "--max-loss", 1)
    assert "an adapter of rank 32, which keeps" in done.output
    assert run(recipe, tmp_path / "whole").exit_code == 0
    assert (logits(base, tmp_path / "low") - logits(tmp_path / "whole")).abs().max() < 1e-4  # the matrices have 32 rows


def test_example_of_the_mean_of_products(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=4, hidden_size=2, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1,
        architectures=["LlamaForCausalLM"], tie_word_embeddings=False,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    pairs = [([[1.0], [2.0]], [[1.0, 0.0]]), ([[3.0], [0.0]], [[0.0, 1.0]])]
    folders = []
    for k, (left, right) in enumerate(pairs):
        folders.append(tmp_path / f"order_{k}")
        folders[-1].mkdir()
        tensors = {f"{key}.lora_B.weight": torch.tensor(left), f"{key}.lora_A.weight": torch.tensor(right)}
        save_file(tensors, folders[-1] / "adapter_model.safetensors")
        peft.LoraConfig(
            r=1, lora_alpha=1, target_modules=["q_proj"], base_model_name_or_path=str(tmp_path / "base")
        ).save_pretrained(folders[-1])
    merge(write_recipe(tmp_path / "recipe.yml", tmp_path / "base", folders), tmp_path / "out")
    merged = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert (merged[f"{key}.lora_B.weight"] @ merged[f"{key}.lora_A.weight"]).tolist() == [[0.5, 1.5], [1.0, 0.0]]


def test_lower_rank_says_what_it_keeps(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yml", base, adapters)
    done = merge(recipe, tmp_path / "out", "--rank", 3)
    noted = json.loads((tmp_path / "out" / "ordermerge.json").read_text())["adapter"]
    assert noted["rank"] == 3
    shares = noted["kept_of"]
    assert noted["kept_there"] == min(shares.values()) == shares[noted["module"]]
    whole = merged_changes(base, adapters)
    kept = merged_changes(base, [tmp_path / "out"])
    expected = {name: float(kept[name].square().sum() / whole[name].square().sum()) for name in whole}
    assert shares == pytest.approx(expected, rel=1e-4)
    total = sum(float(kept[n].square().sum()) for n in whole) / sum(float(whole[n].square().sum()) for n in whole)
    assert noted["kept"] == pytest.approx(total, rel=1e-4)
    assert f"rank 3, which keeps {100 * noted['kept']:.4g} % of the squared norm of the merge's change" in done.output
    assert f"(the lowest: {100 * noted['kept_there']:.4g} % in {noted['module']})" in done.output


def merged_changes(base: Path, adapters: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Return the mean change of each module, by PEFT."""
    found: dict[str, torch.Tensor] = {}
    for adapter in adapters:
        model = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), str(adapter))
        for name, module in model.named_modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                name = name.removeprefix("base_model.model.")
                found[name] = found.get(name, 0) + module.get_delta_weight("default").detach() / len(adapters)
    return found


def test_average_beyond_a_stated_loss_is_refused(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yml", base, adapters)
    said = refusal(recipe, "--rank", 1, "--max-loss", 0.01)
    assert "at rank 1 the adapter would lose" in said
    assert "more than 1 %: give a larger `--rank` or `--max-loss`" in said


def test_selection_is_refused_with_the_reason(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yml", base, adapters, merge_method="parameter_selection")
    assert "`parameter_selection` chooses or scales each value on its own, so its change is of full" in refusal(recipe)
    said = refusal(recipe, "--rank", 4)
    assert "at rank 4 the adapter would lose" in said
    assert "more than 5 %: `parameter_selection` chooses or scales each value on its own" in said


def test_selection_within_a_stated_loss_is_its_largest_parts(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yml", base, adapters, merge_method="parameter_selection")
    merge(recipe, tmp_path / "out", "--rank", 31, "--max-loss", 0.05)
    assert run(recipe, tmp_path / "whole").exit_code == 0
    merged, before = load_file(tmp_path / "whole" / "model.safetensors"), load_file(base / "model.safetensors")
    for module, change in merged_changes(base, [tmp_path / "out"]).items():
        selected = merged[f"{module}.weight"] - before[f"{module}.weight"]
        assert (change - selected).norm() / selected.norm() < 0.05


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"bias": "all"}, "is more than a low-rank change of the base model (`bias: 'all'`)"),
        ({"modules_to_save": ["lm_head"]}, "(`modules_to_save: ['lm_head']`)"),
        ({"use_dora": True}, "(`use_dora: True`)"),
        ({"trainable_token_indices": [3]}, "`trainable_token_indices: [3]`"),
    ],
)
def test_adapters_that_are_more_are_refused(
    settings: dict[str, Any], reason: str, base: Path, adapters: list[Path], tmp_path: Path
) -> None:
    more = make_adapter(base, tmp_path / "more", **settings)
    said = refusal(write_recipe(tmp_path / "recipe.yml", base, [adapters[0], more]))
    assert reason in said
    assert "so it cannot be merged to an adapter; merge without `--adapter`" in said


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")  # what the test is about
def test_adapted_tied_embedding_is_refused(make_family: Callable[..., list[Path]], tmp_path: Path) -> None:
    (base,) = make_family("llama_tied", count=0, dtype=torch.float32)
    adapter = make_adapter(base, tmp_path / "a", target_modules=["embed_tokens", "q_proj"])
    said = refusal(write_recipe(tmp_path / "recipe.yml", base, [adapter]))
    assert "adapts `model.embed_tokens`, which the base model ties to another matrix" in said


def test_what_is_no_merge_of_adapters_is_refused(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    other = shutil.copytree(base, tmp_path / "other")
    cases: dict[str, dict[str, Any]] = {
        "no model of the recipe is one; write them as BASE+ADAPTER": {"models": [{"model": str(base)}]},
        "an adapter changes one base model, and the recipe has 2": {
            "models": [{"model": f"{base}+{adapters[0]}"}, {"model": f"{other}+{adapters[1]}"}]
        },
        "the weights sum to 2 for": {"parameters": {"weight": 1, "normalize": False}},
        "`tokenizer_source` changes more than an adapter holds": {"tokenizer_source": "base", "base_model": str(base)},
        "`weight` is 0 for every adapter": {
            "merge_method": "task_arithmetic",
            "base_model": str(base),
            "parameters": {"weight": 0},
        },
    }
    for number, (reason, more) in enumerate(cases.items()):
        assert reason in refusal(write_recipe(tmp_path / f"{number}.yml", base, adapters, **more)), reason


def test_damaged_adapters_are_refused(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    broken = shutil.copytree(adapters[0], tmp_path / "broken")
    recipe = write_recipe(tmp_path / "recipe.yml", base, [adapters[1], broken])
    weights = load_file(broken / "adapter_model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] * torch.nan}, broken / "adapter_model.safetensors")
    assert f"`{name}` holds NaN or infinite values" in refusal(recipe)
    save_file({n: t for n, t in weights.items() if n != name}, broken / "adapter_model.safetensors")
    assert "do not go together; copy or save it again" in refusal(recipe)
    (broken / "adapter_model.safetensors").write_bytes(b"no tensors")
    assert "cannot be read" in refusal(recipe)
    (broken / "adapter_model.safetensors").unlink()
    assert "is incomplete: it has no adapter_model.safetensors" in refusal(recipe)


def test_rank_goes_with_adapter(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    done = run(write_recipe(tmp_path / "recipe.yml", base, adapters), tmp_path / "out", "--rank", 4)
    assert done.exit_code == 2
    assert "--rank and --max-loss go with --adapter" in done.output
    done = run(tmp_path / "recipe.yml", tmp_path / "out", "--adapter", "--by-name")
    assert done.exit_code == 2
    assert "--by-name is for whole models" in done.output


def test_card_marker_and_a_second_merge(base: Path, adapters: list[Path], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yml", base, adapters)
    merge(recipe, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: peft" in card
    assert "to an adapter of rank 4, which is the merge exactly" in card
    assert str(tmp_path) not in card.replace(str(base), "")
    assert str(base) not in card
    first = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    merge(recipe, tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == first
    (tmp_path / "out" / "mine.txt").write_text("kept")
    assert "holds mine.txt" in run(recipe, tmp_path / "out", "--adapter").output


def test_merged_adapter_is_scored_alone_and_with_its_base_model_named(
    base: Path, adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(write_recipe(tmp_path / "recipe.yml", base, adapters), tmp_path / "mean")
    assert run(tmp_path / "recipe.yml", tmp_path / "dense").exit_code == 0
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"word": word}) + "\n" for word in ("abcab", "bcdbc")))
    task = {
        "task": "word",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{word}}",
        "doc_to_choice": ["a", "b"], "doc_to_target": 0,
    }  # fmt: skip
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "word.yaml").write_text(yaml.safe_dump(task))
    monkeypatch.chdir(tmp_path)
    scored = {}
    for name, model in (("mean", "mean"), ("named", f"{base}+mean"), ("dense", "dense"), ("base", str(base))):
        arguments = [model, "--tasks", "word", "--include-path", "tasks", "--device", "cpu", "--out", name]
        done = CliRunner().invoke(main, ["eval", *arguments])
        assert done.exit_code == 0, done.output
        (samples,) = Path(name).rglob("samples_*.jsonl")
        answers = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
        scored[name] = torch.tensor([[float(loss) for loss, _ in answer] for answer in answers])
    assert torch.equal(scored["named"], scored["mean"])
    assert (scored["mean"] - scored["dense"]).abs().max() < 1e-4
    assert (scored["mean"] - scored["base"]).abs().max() > 1e-2
