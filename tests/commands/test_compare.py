"""`ordermerge compare` on folders in lm-eval's form, on lm-eval's own, and on those of a run."""

import csv
import io
import json
import logging
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from scipy.stats import binomtest

from ordermerge.cli import main

N = 220
DATE = "2026-01-02T03-04-05.000006"  # where `save` is given none


def compare(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def comparisons(*arguments: object) -> list[dict[str, Any]]:
    done = compare(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.output)["comparisons"]


def discordant(gains: int, losses: int) -> tuple[list[float], list[float]]:
    """Values of two models on N documents: the second alone is right on `gains`, the first alone on `losses`."""
    both = (N - gains - losses) // 2
    first = [1.0] * both + [0.0] * gains + [1.0] * losses + [0.0] * (N - both - gains - losses)
    second = [1.0] * both + [1.0] * gains + [0.0] * losses + [0.0] * (N - both - gains - losses)
    return first, second


@pytest.mark.parametrize(("gains", "losses"), [(31, 17), (12, 12), (9, 0), (3, 40)])
def test_p_value_is_that_of_the_binomial_test_of_the_discordant_documents(
    save: Callable[..., Path], tmp_path: Path, gains: int, losses: int
) -> None:
    first, second = discordant(gains, losses)
    a, b = save(tmp_path / "a", first), save(tmp_path / "b", second)
    (found,) = comparisons(a, b)
    assert found["p_value"] == pytest.approx(binomtest(gains, gains + losses).pvalue, rel=1e-9)
    assert found["difference"] == pytest.approx((gains - losses) / N)
    assert (found["model"], found["reference_models"], found["documents"]) == (str(b), [str(a)], N)


def test_documents_are_matched_by_their_hashes_whatever_their_numbers(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    first, second = discordant(20, 5)
    a = save(tmp_path / "a", first)
    shuffled = random.Random(0).sample(range(N), N)
    b = save(tmp_path / "b", [second[number] for number in shuffled], numbers=shuffled)
    (found,) = comparisons(a, b)
    assert found["p_value"] == pytest.approx(binomtest(20, 25).pvalue, rel=1e-9)


def test_references(save: Callable[..., Path], tmp_path: Path) -> None:
    scores = {name: [1.0] * right + [0.0] * (10 - right) for name, right in {"a": 3, "b": 8, "c": 4, "d": 5}.items()}
    folders = {name: save(tmp_path / name, values) for name, values in scores.items()}
    listed = [folders["a"], folders["b"], folders["c"]]

    def against(*reference: object) -> list[tuple[str, float, list[str]]]:
        found = comparisons(*listed, *reference)
        return [(Path(one["model"]).name, round(one["difference"], 9), one["reference_models"]) for one in found]

    a, b, d = (str(folders[name]) for name in "abd")
    assert against() == [("b", 0.5, [a]), ("c", 0.1, [a])]
    assert against("--reference", folders["b"]) == [("a", -0.5, [b]), ("c", -0.4, [b])]
    assert against("--reference", "b") == against("--reference", folders["b"])
    assert against("--reference", f"{tmp_path}/../{tmp_path.name}/b/") == against("--reference", "b")
    assert against("--reference", "best") == against("--reference", folders["b"])
    assert against("--reference", folders["d"]) == [("a", -0.2, [d]), ("b", 0.3, [d]), ("c", -0.1, [d])]
    assert against("--reference", "mean") == [(name, gap, list(map(str, listed))) for name, gap in
                                              (("a", -0.2), ("b", 0.3), ("c", -0.1))]  # fmt: skip


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"prompt": "x"}, "were scored with different prompts of t"),
        ({"target": "x"}, "were scored with different targets of t"),
        ({"numbers": range(5, 15)}, "were scored on different documents of t"),
        ({"shots": 5}, "were scored on t with different numbers of few-shot examples (0 and 5)"),
        ({"version": 2}, "were scored on t with different versions of the task (1 and 2)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_was_scored_otherwise_is_refused_by_name(
    save: Callable[..., Path], tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    a, b = save(tmp_path / "a", [1.0] * 10), save(tmp_path / "b", [1.0] * 10, **other)
    done = compare(a, b)
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: {a} and {b} {message}; score them alike, or leave the task out")
    later = "2026-02-02T03-04-05.000006"
    save(a, [1.0] * 6 + [0.0] * 4, task="u", date=later), save(b, [1.0] * 10, task="u", date=later)
    assert [one["task"] for one in comparisons(a, b, "--tasks", "u")] == ["u"]


def test_of_several_dates_the_newest_counts_or_the_one_that_is_named(save: Callable[..., Path], tmp_path: Path) -> None:
    first, last = "2026-01-01T00-00-00", "2026-02-02T03-04-05.000006"
    a = save(save(save(tmp_path / "a", [0.0] * 10, date=last), [1.0] * 10), [0.0] * 10, task="u", date=first)
    b = save(save(tmp_path / "b", [1.0] * 10), [1.0] * 10, task="u", date=last)
    # each task from the newest results that hold it
    assert {one["task"]: one["difference"] for one in comparisons(a, b)} == {"t": 1.0, "u": 1.0}
    earlier = a / "org__model" / f"results_{DATE}.json"
    (found,) = comparisons(earlier, b, "--tasks", "t")
    assert (found["difference"], found["reference_models"]) == (0.0, [str(earlier)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none", "b"], "none: no such folder of results (looked in"),
        (["empty", "b"], "empty: it holds no results of lm-eval; give the folder that"),
        (["bare", "b"], "bare: has scores but no samples of its documents; score it with `lm_eval --log_samples`"),
        (["b"], "a comparison takes at least 2 models; got b"),
        (["b", "b"], "b: listed more than once"),
        (["b", "./b/"], "./b: listed more than once, as b too; list each folder once"),
        (["b", "c", "--tasks", "T"], "task 'T' has no scores here (known: t)"),
        (["b", "c", "--reference", "besst"], "--reference besst: give `mean`, `best`, a model's name or a folder"),
        (["b", "run"], "run: the run has no scores yet: `ordermerge run` makes them"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_exit_1_with_a_sentence(
    save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("b"), [1.0] * 9 + [0.0]), save(Path("c"), [1.0] * 10), save(Path("bare"), [1.0], samples=False)
    Path("empty").mkdir()
    Path("run").mkdir()
    Path("run/experiment.yml").write_text("name: run\n")
    done = compare(*arguments)
    assert done.exit_code == 1
    assert message in done.output


def test_out_holds_json_markdown_page_and_plot_and_csv_the_same_numbers(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    first, second = discordant(31, 17)
    a, b = save(tmp_path / "a", first), save(tmp_path / "b", second)
    out = tmp_path / "out"
    done = compare(a, b, "--out", out)
    assert done.exit_code == 0, done.output
    names = ["comparison.html", "comparison.json", "comparison.md", "effects.csv", "effects.png", "effects.svg"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert f"| {b} | +0.064 |" in (out / "comparison.md").read_text()
    assert "<svg" in (out / "comparison.html").read_text()
    report = json.loads((out / "comparison.json").read_text())
    assert all((out / path).is_file() for files in report["files"].values() for path in files["samples"].values())
    printed = list(csv.DictReader(io.StringIO(compare(a, b, "--format", "csv").output)))
    assert [float(one["p_value"]) for one in printed] == [one["p_value"] for one in report["comparisons"]]
    compare(a, b, "--json", tmp_path / "numbers.json")
    assert json.loads((tmp_path / "numbers.json").read_text())["comparisons"] == report["comparisons"]


def test_compare_imports_nothing_that_is_slow(save: Callable[..., Path], tmp_path: Path) -> None:
    a, b = save(tmp_path / "a", [1.0, 0.0] * 5), save(tmp_path / "b", [1.0] * 10)
    code = (
        "import sys; from ordermerge.cli import main\n"
        f"try: main(['compare', {str(a)!r}, {str(b)!r}])\n"
        "except SystemExit as done: assert done.code in (0, None)\n"
        "slow = {'torch', 'transformers', 'mergekit', 'lm_eval.evaluator', 'matplotlib'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.integration
def test_what_lm_eval_wrote_itself_is_compared_by_the_folders_alone(
    make_family: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.__main__ import cli_evaluate

    draw = random.Random(0)
    lines = [{"question": "".join(draw.choices("abcdefgh", k=4)), "label": draw.randrange(3)} for _ in range(20)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tasks").mkdir()
    task = {
        "task": "choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": ["a", "b", "c"],
        "doc_to_target": "{{label}}",
    }
    (tmp_path / "tasks" / "choice.yaml").write_text(yaml.safe_dump(task))
    monkeypatch.chdir(tmp_path)
    for name, value in {"handlers": [], "propagate": True, "level": logging.NOTSET}.items():
        monkeypatch.setattr(logging.getLogger("lm_eval"), name, value)  # its command configures it
    for model in make_family(count=1):
        arguments = ["--model", "hf", "--model_args", f"pretrained={model}", "--tasks", "tasks/choice.yaml"]
        options = ["--device", "cpu", "--batch_size", "8", "--log_samples", "--output_path", model.name]
        monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments, *options])
        cli_evaluate()
    done = compare("base", "sub0")
    assert done.exit_code == 0, done.output
    assert "choice acc ↑, 20 documents\nAgainst the reference, base (" in done.output
    (found, normed) = comparisons("base", "sub0")
    assert (found["metric"], normed["metric"], found["model"]) == ("acc", "acc_norm", "sub0")
    right = {}
    for model in ("base", "sub0"):
        (file,) = Path(model).rglob("samples_*.jsonl")
        right[model] = [json.loads(line)["acc"] for line in file.read_text().splitlines()]
    gains = sum(b > a for a, b in zip(right["base"], right["sub0"], strict=True))
    losses = sum(b < a for a, b in zip(right["base"], right["sub0"], strict=True))
    assert found["p_value"] == pytest.approx(binomtest(gains, gains + losses).pvalue if gains + losses else 1)
    report = json.loads(compare("base", "sub0", "--json").output)
    assert [one["accuracy"] for one in report["calibration"]] == [sum(right[m]) / 20 for m in ("base", "sub0")]
