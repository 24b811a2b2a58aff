"""What a user asks for reaches lm-eval under lm-eval's own names."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ordermerge.cli import main
from ordermerge.config.load import evaluation_section
from ordermerge.errors import UserError


def test_every_option_reaches_lm_eval(tmp_path, monkeypatch, tasks, family):
    asked: dict[str, Any] = {}

    def listen(**arguments: Any) -> None:
        asked.update(arguments)
        raise KeyError("heard enough")

    monkeypatch.setattr("lm_eval.simple_evaluate", listen)
    options = [
        *("--tasks", "choice", "--include_path", tasks, "--batch_size", "auto", "--max_batch_size", "64"),
        *("--model_args", "dtype=bfloat16,max_length=64", "--device", "cpu", "--num_fewshot", "3", "--limit", "0.5"),
        *("--gen_kwargs", "temperature=0.7,do_sample=true,until=['a','b']", "--apply_chat_template"),
        *("--fewshot_as_multiturn", "false", "--system_instruction", "Be brief.", "--metadata", '{"x": [1]}'),
        *("--confirm_run_unsafe_code", "--out", tmp_path / "out"),
    ]
    CliRunner().invoke(main, ["eval", str(family[0]), *map(str, options)])
    manager = asked.pop("task_manager")
    assert manager.metadata == {"dtype": "bfloat16", "max_length": 64, "x": [1]}
    asked.pop("evaluation_tracker")
    assert [task.task_name for task in asked.pop("tasks")] == ["choice"]
    assert asked == {
        "model": "hf",
        "model_args": {"dtype": "bfloat16", "max_length": 64, "pretrained": str(family[0])},
        "num_fewshot": 3,
        "batch_size": "auto",
        "max_batch_size": 64,
        "device": "cpu",
        "limit": 0.5,
        "apply_chat_template": True,
        "fewshot_as_multiturn": False,
        "system_instruction": "Be brief.",
        "gen_kwargs": {"temperature": 0.7, "do_sample": True, "until": ["a", "b"]},
        "confirm_run_unsafe_code": True,
        "log_samples": True,
    }


VLLM = """
import importlib.metadata, json, pathlib, sys, types

def module(name, **content):
    made = types.ModuleType(name)
    made.__dict__.update(content)
    sys.modules[name] = made

class LLM:
    def __init__(self, **arguments):
        print(json.dumps(arguments))
        raise SystemExit

module("vllm", LLM=LLM, SamplingParams=None, TokensPrompt=None, __spec__=types.SimpleNamespace(name="vllm"))
module("vllm.lora")
module("vllm.lora.request", LoRARequest=None)
module("vllm.tokenizers", get_tokenizer=None)
module("vllm.renderers")
module("vllm.renderers.hf", resolve_chat_template=None)
installed = importlib.metadata.version
importlib.metadata.version = lambda name: "0.11.0" if name == "vllm" else installed(name)
from ordermerge.eval.scoring.harness import evaluate_model
from ordermerge.eval.scoring.harness import LoadedTask
from ordermerge.config.schema import EvaluationSection
arguments = {"dtype": "bfloat16", "gpu_memory_utilization": 0.8}
settings = EvaluationSection(tasks=["t"], model="vllm", batch_size="auto", model_args=arguments)
evaluate_model(sys.argv[1], None, [LoadedTask({"t": None}, ["t"])], settings, pathlib.Path(sys.argv[2]))
"""


@pytest.mark.integration
def test_vllm_is_given_the_folder_and_its_arguments_and_no_device(tmp_path, family):
    """vLLM itself is not here: lm-eval's own code is run up to the engine's start, in a process of its own."""
    command = [sys.executable, "-c", VLLM, str(family[0]), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    started = json.loads(done.stdout)
    assert (started["model"], started["dtype"], started["gpu_memory_utilization"]) == (str(family[0]), "bfloat16", 0.8)
    assert "device" not in started
    assert "device" not in done.stderr


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("a=1,b=x", {"a": 1, "b": "x"}),
        ("lr=1e-5,t=0.5,on=true", {"lr": 1e-5, "t": 0.5, "on": True}),
        ("until=['a','b'],n=2", {"until": ["a", "b"], "n": 2}),
        ('a={"x": 1, "y": 2}', {"a": {"x": 1, "y": 2}}),
        ('a=[[1,2],[3,4]],stop="a,b"', {"a": [[1, 2], [3, 4]], "stop": "a,b"}),
        ("answer=no,day=2020-01-01", {"answer": "no", "day": "2020-01-01"}),
        ("a=b=c", {"a": "b=c"}),
        ('{"a": "{{x}}, y", "b": null}', {"a": "{{x}}, y", "b": None}),
    ],
)
def test_pairs_are_read_in_both_forms(text, pairs):
    assert evaluation_section({"tasks": ["t"], "gen_kwargs": text}).gen_kwargs == pairs


@pytest.mark.parametrize("text", ["a", "a=1,b", '{"a": ', "{a}]"])
def test_other_text_is_refused_by_name(text):
    with pytest.raises(UserError, match=r"^`metadata` must be key=value,key=value or a JSON object; got "):
        evaluation_section({"tasks": ["t"], "metadata": text})


def test_what_is_decided_here_cannot_be_set():
    with pytest.raises(UserError, match=r"^`output_path` cannot be set: `ordermerge` keeps"):
        evaluation_section({"tasks": ["t"], "output_path": "x"})


def test_tasks_command_prints_the_folder():
    folder = Path(CliRunner().invoke(main, ["tasks"]).output.strip())
    assert (folder / "final_answer.yaml").is_file()
