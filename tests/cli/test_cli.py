"""The command line from outside: quick help, exit statuses, and messages without tracebacks."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from ordermerge import __version__
from ordermerge.cli import main
from ordermerge.eval.scoring.saved import load_rows

COMMANDS = sorted(set(main.commands) - {"merge"})
TASK = """
task: text
dataset_path: json
dataset_kwargs: {data_files: {test: TEST}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
"""


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys; from ordermerge.cli import main\n"
        f"try: main({[*command, '--help']!r})\n"
        "except SystemExit as done: assert done.code == 0\n"
        "heavy = {'torch', 'transformers', 'mergekit', 'lm_eval', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: ")


def test_evaluation_options_are_the_fields_of_the_evaluation_section() -> None:
    from ordermerge.config.schema import EvaluationSection

    own = {"models", "out", "json_file", "wait", "force"}
    given = {parameter.name for parameter in main.commands["eval"].params} - own
    assert given == set(EvaluationSection.model_fields)


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ordermerge.eval.inspect.inspection.inspect_models", interrupted)
    done = CliRunner().invoke(main, ["inspect", "m", "--base", "b"])
    assert done.exit_code == 130
    assert "Interrupted. Nothing half-made is left; the same command begins anew." in done.stderr
    monkeypatch.setattr("ordermerge.commands.evaluate.evaluate_models", interrupted)
    done = CliRunner().invoke(main, ["eval", "m", "--tasks", "t"])
    assert (done.exit_code, done.stdout) == (130, "")
    assert "Interrupted. What is finished is kept, and the same command goes on from there." in done.stderr


def test_version_is_printed() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == f"ordermerge, version {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "x", "--no-such"],
        ["run", "x", "--force", "cook"],
        ["eval", "m"],
        ["eval", "--tasks", "t"],
        ["run", "x", "--json"],
        ["inspect", "m"],
        ["inspect", "--base", "b"],
        ["train", "x", "--order", "-1"],
        ["orders", "x", "--processes", "0"],
        ["train", "x", "--cpus-per-order", "2"],
        ["train", "x", "--executor", "ray", "--gpus-per-order", "2"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert "Usage: " in done.output


@pytest.mark.parametrize("command", ["run", "train", "orders", "check"])
def test_mistakes_exit_1_with_a_sentence(command: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [command, str(tmp_path / "no.yml")])
    assert (done.exit_code, done.output) == (1, f"Error: {tmp_path / 'no.yml'}: no such file (looked in {tmp_path})\n")


def test_module_runs_as_a_script() -> None:
    done = subprocess.run([sys.executable, "-m", "ordermerge", "--version"], capture_output=True, text=True, check=True)
    assert __version__ in done.stdout


def test_check_tells_recipes_from_experiments(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text("merge_method: linear\nmodels: [{model: org/a}, {model: org/b}]\nparameters: {weight: 1}\n")
    done = CliRunner().invoke(main, ["check", str(path)])
    assert (done.exit_code, done.output) == (0, f"{path}: the recipe is well-formed\n")
    path.write_text("merge_method: linear\nmodels: [{model: org/a}]\nparameters: {wieght: 1}\n")
    done = CliRunner().invoke(main, ["check", str(path)])
    assert done.exit_code == 1
    assert done.output == (
        f"Error: {path}: unknown parameter `parameters.wieght` for linear (did you mean 'weight'?)\n"
    )


def test_eval_scores_any_models_and_keeps_the_files(make_family: Callable[..., list[Path]], tmp_path: Path) -> None:
    base, first, _ = make_family(count=2)
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "abc=12"}) + "\n")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "text.yaml").write_text(TASK.replace("TEST", str(tmp_path / "text.jsonl")))
    arguments = ["--tasks", "text", "--include-path", str(tmp_path / "tasks"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, ["eval", str(base), str(first), *arguments, "--batch-size", "2", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    rows = load_rows(tmp_path / "out")
    assert {row.model for row in rows} == {"base", "sub0"}
    for row in rows:
        assert f"{row.value:.3f}" in done.output
    assert list((tmp_path / "out" / "base").glob("results_*.json"))

    bad = CliRunner().invoke(main, ["eval", str(base), *arguments, "--gen-kwargs", "temperature"])
    assert bad.exit_code == 1
    assert "`gen_kwargs` must be key=value,key=value or a JSON object; got 'temperature'" in bad.output
    changed = CliRunner().invoke(main, ["eval", str(base), *arguments, "--num-fewshot", "1"])
    assert changed.exit_code == 1
    assert "evaluation.num_fewshot: not set, now 1: the scores of base were made with the old value" in changed.output


@pytest.mark.parametrize("spelling", ["--batch_size 2 --num_fewshot 1 --output_path there", "-b 2 -f 1 -o there -M hf"])
def test_eval_takes_lm_evals_spellings(spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, object] = {}

    def evaluate(models: object, out: object, settings: dict[str, object], *, force: bool) -> list[object]:
        taken.update(settings, models=models, out=str(out))
        return []

    monkeypatch.setattr("ordermerge.commands.evaluate.evaluate_models", evaluate)
    monkeypatch.setattr("ordermerge.commands.evaluate.print_scores", lambda *_: None)
    arguments = ["eval", "m", "-t", "a,b", "-a", "dtype=float32", "-L", "3", *spelling.split()]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    expected = {"models": ("m",), "tasks": ["a", "b"], "model_args": "dtype=float32", "limit": 3.0, "out": "there"}
    assert taken | expected | {"batch_size": "2", "num_fewshot": 1, "model": "hf"} == taken


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["m", "--use_cache", "x"],
            "--use-cache of lm-eval cannot be set: scores are kept with what they were made from",
        ),
        (["m", "-s"], "-s of lm-eval cannot be set: `ordermerge` keeps lm-eval's results and samples"),
        (["m", "--seed", "1"], "--seed of lm-eval cannot be set: all models are scored alike"),
        (["m", "--taks", "x"], "No such option '--taks'. Did you mean '--tasks'?"),
        (["-a", "dtype=float32,pretrained=base"], "`pretrained=base` is written `ordermerge eval base` here."),
    ],
)
def test_eval_says_why_it_has_not_an_option(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["eval", "--tasks", "t", *arguments])
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("words", "completed"), [("ev", "plain,eval"), ("merge re", "file,re"), ("eval ba", "file,ba")]
)
def test_shells_complete_commands_and_paths(words: str, completed: str) -> None:
    given = {"COMP_WORDS": f"ordermerge {words}", "COMP_CWORD": str(len(words.split()))}
    done = CliRunner().invoke(main, env={**given, "_ORDERMERGE_COMPLETE": "bash_complete"}, prog_name="ordermerge")
    assert done.output.splitlines() == [completed]
