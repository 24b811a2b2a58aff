"""What evaluation says when something is wrong: one sentence with its remedy."""

import json
import sys
import types

import jinja2
import pytest
import torch
from huggingface_hub import constants, errors

import ordermerge.eval.scoring.hub
from ordermerge.config.schema import EvaluationSection
from ordermerge.errors import UserError
from ordermerge.eval.scoring.checks import settings_problems
from ordermerge.eval.scoring.explain import explained
from ordermerge.eval.scoring.hub import offline_if_unreachable
from ordermerge.eval.scoring.score import ScoringFailed, score_models
from ordermerge.eval.scoring.tasks import on_hub
from ordermerge.models import is_offline, missing_package


def of_torch() -> Exception:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**55)
    return error.value


def chained() -> Exception:
    with pytest.raises(OSError, match="no config") as error:
        try:
            raise errors.OfflineModeIsEnabled("offline")
        except ConnectionError as cause:
            raise OSError("no config.json") from cause
    return error.value


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (of_torch(), r"out of memory \(.*allocate.*\); give a smaller `batch_size`, or `auto`"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory .*smaller `batch_size`"),
        (RuntimeError("No executable batch size found, reached zero."), "out of memory .*another `dtype`"),
        (MemoryError(), "out of memory"),
        (OverflowError("math range error"), "its scores overflow: .* as a model does whose training diverged"),
        (
            chained(),
            r"on the Hugging Face hub, which cannot be reached, and is not in the local cache \(OSError: no con",
        ),
        (errors.LocalEntryNotFoundError("gone"), "use it once online, or choose what is on this machine"),
        (
            ValueError('set the environment variable HF_ALLOW_CODE_EVAL="1"'),
            "the environment variable HF_ALLOW_CODE_EVAL=1",
        ),
        (
            jinja2.UndefinedError("'question' is undefined"),
            "field that the records do not have: 'question' is undefined",
        ),
        (UserError("as it is"), "^as it is$"),
        (KeyError("x" * 400), r"^KeyError: 'x{296}\.\.\.$"),
    ],
)
def test_explained_gives_cause_and_remedy(error, message):
    with pytest.raises(UserError, match=message):
        raise UserError(explained(error))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("completion", "message"),
    [
        ("a" * 200, "longer than the model's context; leave such documents out"),
        ("", "a text to be scored has no characters, or its beginning and the end of its context are one token"),
    ],
)
def test_completion_that_cannot_be_scored_is_named(tmp_path, models, completion, message):
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "a", "completion": completion}) + "\n")
    data = {"data_files": str(tmp_path / "d.jsonl")}
    settings = EvaluationSection(tasks=["ordermerge_completion"], metadata=data, device="cpu")
    with pytest.raises(ScoringFailed, match=message):
        score_models({"base": models["base"]}, settings, tmp_path / "out")


def test_unreachable_hub_is_asked_once_and_its_clients_go_offline(monkeypatch):
    asked = []

    def head(url, timeout):
        asked.append(timeout)
        raise ConnectionError("no such host")

    monkeypatch.setattr("huggingface_hub.get_session", lambda: types.SimpleNamespace(head=head))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with offline_if_unreachable():
        assert is_offline()
        with offline_if_unreachable():
            assert is_offline()
    assert not is_offline()
    with offline_if_unreachable(needed=False):
        assert not is_offline()
    assert asked == [ordermerge.eval.scoring.hub.TIMEOUT]


def test_reachable_hub_changes_nothing(monkeypatch):
    answer = types.SimpleNamespace(head=lambda url, timeout: "200")
    monkeypatch.setattr("huggingface_hub.get_session", lambda: answer)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(KeyError), offline_if_unreachable():
        assert not is_offline()
        raise KeyError
    assert not is_offline()


def test_on_hub_local_tasks_and_models_need_no_network(tasks, family):
    local = EvaluationSection(tasks=["both", "surprise"], include_path=str(tasks))
    assert not on_hub(local, [str(family[0])])
    assert on_hub(local, [str(family[0]), "org/model"])
    assert on_hub(EvaluationSection(tasks=["gsm8k"]), [str(family[0])])


def test_hub_task_without_network_fails_at_once_with_one_sentence(monkeypatch, tmp_path, own_tasks, family):
    (own_tasks / "far.yaml").write_text(
        "task: far\ndataset_path: some/where\ntest_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\n"
        "doc_to_target: text\nmetric_list: [{metric: bits_per_byte}]\n"
    )
    monkeypatch.setattr("ordermerge.eval.scoring.hub._reachable", lambda endpoint: False)
    settings = EvaluationSection(tasks=["far"], include_path=str(own_tasks), device="cpu")
    with pytest.raises(UserError, match=r"^task 'far' cannot be loaded: it is on the Hugging Face hub, which cannot"):
        score_models({"m": str(family[0])}, settings, tmp_path / "out")


@pytest.mark.integration
def test_model_out_of_memory_is_named_with_the_remedy(monkeypatch, tmp_path, models, short):
    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("lm_eval.models.huggingface.HFLM._model_call", exhausted)
    with pytest.raises(
        ScoringFailed, match=r"^base \(.*\) could not be scored: out of memory .* `batch_size`, or `auto`"
    ):
        score_models({"base": models["base"]}, short, tmp_path / "out")


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delitem(sys.modules, "lm_eval.models.vllm_causallms", raising=False)
    (problem,) = settings_problems(EvaluationSection(tasks=["t"], model="vllm"))
    assert problem.startswith("model: the backend 'vllm' needs a package that is not installed (")
    assert problem.endswith("); pip install 'ordermerge[vllm]'")
    assert missing_package("hf") is None
    assert missing_package("dummy") is None


def test_examples_as_turns_need_a_chat():
    settings = EvaluationSection(tasks=["t"], fewshot_as_multiturn=True)
    assert settings_problems(settings) == [
        "fewshot_as_multiturn: needs `apply_chat_template`; leave one out, or give both"
    ]
    assert settings_problems(settings.model_copy(update={"apply_chat_template": True})) == []
