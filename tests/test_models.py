import json
import shutil
from pathlib import Path

import pytest

from ordermerge.errors import UserError
from ordermerge.models import hub_name, hub_revision, identity, loading_args, model_names, model_problem


def test_model_names_are_last_parts_as_long_as_needed(tmp_path):
    folders = [tmp_path / path for path in ("a/orders/0", "b/orders/0", "a/orders/1")]
    for folder in folders:
        folder.mkdir(parents=True)
    models = [*map(str, folders), "org/model", "gpt2"]
    assert model_names(models) == dict(zip(["a-orders-0", "b-orders-0", "1", "model", "gpt2"], models, strict=True))


def test_model_names_of_different_models_never_coincide(tmp_path, monkeypatch):
    (tmp_path / "org" / "m").mkdir(parents=True)
    (tmp_path / "x" / "org" / "m").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert len(model_names(["org/m", "x/org/m", "hub/m", "m"])) == 4


def test_model_names_same_model_twice_is_refused(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"\./m, m listed more than once"):
        model_names(["m", "./m"])


def test_identity_follows_loaded_files_only(tmp_path, family):
    model = shutil.copytree(family[0], tmp_path / "model")
    before = identity(str(model))
    for name in ("README.md", "mergekit_config.yml", "ordermerge.json"):
        (model / name).write_text("how it was made")
    (model / "order").mkdir()
    (model / "order" / "order.json").write_text("{}")
    assert identity(str(model)) == before == identity(str(family[0]))
    (model / "generation_config.json").write_text("{}")
    assert [key for key in before if identity(str(model))[key] != before[key]] == ["generation_config.json"]
    assert identity("org/model") == {"hub_id": "org/model"}


def test_hub_revision_is_given_as_mergekit_writes_it(tmp_path):
    (tmp_path / "mine@home").mkdir()
    assert hub_revision(str(tmp_path / "mine@home")) == (str(tmp_path / "mine@home"), None)
    assert loading_args("org/model", "hf") == {"pretrained": "org/model"}
    assert loading_args("org/model@v1.0/a", "hf") == {"pretrained": "org/model", "revision": "v1.0/a"}
    assert identity("org/model@main") != identity("org/model")
    assert model_problem("org/model@main", "hf") is None
    assert "no such model folder" in str(model_problem("./none@main", "hf"))


def test_model_problem_each_kind_has_its_sentence(tmp_path, family):
    model = shutil.copytree(family[0], tmp_path / "model")
    assert model_problem(str(model), "hf") is None
    (model / "model.safetensors").rename(model / "model-00001.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00002.safetensors"}}))
    assert "incomplete: model-00002.safetensors missing" in str(model_problem(str(model), "hf"))
    (model / "model-00001.safetensors").unlink()
    assert "has a config.json but no weights" in str(model_problem(str(model), "hf"))
    (model / "config.json").unlink()
    assert "is no model folder: it has no config.json" in str(model_problem(str(model), "hf"))
    (model / "adapter_config.json").write_text("{}")
    assert "it has an adapter_config.json but no adapter_model.safetensors" in str(model_problem(str(model), "hf"))
    (model / "adapter_model.safetensors").touch()
    assert "adapter_config.json names no base model" in str(model_problem(str(model), "hf"))
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "./gone"}')
    assert "is an adapter whose base model cannot be loaded: gone: no such model" in str(
        model_problem(str(model), "hf")
    )
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(family[0])}))
    assert model_problem(str(model), "hf") is None
    assert "is a file; a model is a folder" in str(model_problem(str(model / "tokenizer.json"), "hf"))


@pytest.mark.parametrize("path", ["./none", "/none/at/all", "a/b/c", "~/none", "here/none"])
def test_model_problem_what_looks_like_a_path_must_exist(path, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "no such model folder" in str(model_problem(path, "hf"))


def test_model_problem_hub_ids_and_other_backends_are_left_to_lm_eval(tmp_path):
    assert model_problem("org/model", "hf") is None
    assert model_problem("gpt2", "hf") is None
    assert model_problem(str(tmp_path / "none"), "local-completions") is None


def test_an_adapter_is_loaded_with_its_base_model_and_identified_by_both(tmp_path, family):
    adapter, base = tmp_path / "adapter", shutil.copytree(family[0], tmp_path / "base")
    adapter.mkdir()
    config = {"base_model_name_or_path": str(base), "revision": None}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert loading_args(str(adapter), "hf") == {"pretrained": str(base), "peft": str(adapter)}
    assert loading_args(str(adapter), "vllm") == {"pretrained": str(base), "lora_local_path": str(adapter)}
    before = identity(str(adapter))
    (base / "generation_config.json").write_text("{}")
    assert identity(str(adapter)) != before
    (adapter / "tokenizer_config.json").touch()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base", "revision": "v2"}))
    told = {"pretrained": "org/base", "peft": str(adapter), "revision": "v2", "tokenizer": str(adapter)}
    assert loading_args(str(adapter), "hf") == told
    assert loading_args(str(base), "hf") == {"pretrained": str(base)}
    assert loading_args("org/model", "hf") == {"pretrained": "org/model"}


def test_an_adapter_with_a_named_base_model_is_loaded_on_that(tmp_path, family):
    adapter, base = tmp_path / "adapter", shutil.copytree(family[0], tmp_path / "base")
    adapter.mkdir()
    assert "is no adapter: it has no adapter_config.json" in str(model_problem(f"{base}+{adapter}", "hf"))
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/other"}))
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    model = f"{base}+{adapter}"
    assert model_problem(model, "hf") is None
    assert "is an adapter whose base model cannot be loaded" in str(model_problem(f"{tmp_path}/none+{adapter}", "hf"))
    assert loading_args(model, "hf") == {"pretrained": str(base), "peft": str(adapter)}
    assert loading_args(f"org/b@v1+{adapter}", "hf") == {"pretrained": "org/b", "peft": str(adapter), "revision": "v1"}
    assert identity(model) == {**identity(str(adapter)), "base_model": identity(str(base))}
    assert model_names([model, str(base)]) == {"adapter": model, "base": str(base)}
    whole = shutil.copytree(family[0], tmp_path / "a+b")
    assert loading_args(str(whole), "hf") == {"pretrained": str(whole)}


def test_relative_base_of_an_adapter_is_found_beside_it(tmp_path, family):
    shutil.copytree(family[0], tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    for named in ("base", "../base"):
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}))
        assert loading_args(str(adapter), "hf")["pretrained"] == str(tmp_path / "base")
        assert model_problem(str(adapter), "hf") is None


def test_old_index_beside_a_whole_file_is_no_problem_and_a_pointer_is(tmp_path, family):
    model = Path(shutil.copytree(family[0], tmp_path / "model"))
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    assert model_problem(str(model), "hf") is None
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "is a Git LFS pointer, not the weights" in str(model_problem(str(model), "hf"))


def test_a_local_model_has_the_hub_id_that_it_knows_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    assert hub_name("base") is None
    (tmp_path / "base" / "config.json").write_text('{"_name_or_path": "org/model"}')
    assert hub_name("base") == hub_name(str(tmp_path / "base")) == "org/model"
    (tmp_path / "org" / "model").mkdir(parents=True)  # the folder that was meant, not the hub's
    assert hub_name("base") is None
    cached = tmp_path / "models--HuggingFaceTB--SmolLM2-135M" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    assert hub_name(str(cached)) == "HuggingFaceTB/SmolLM2-135M"
    assert hub_name("org/other@main") == "org/other"
    assert hub_name("/gone/model") is None
