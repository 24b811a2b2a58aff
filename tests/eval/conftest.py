"""A tiny model and small local tasks, of each kind that lm-eval tells apart; nothing is downloaded."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ordermerge.config.schema import EvaluationSection
from ordermerge.eval.scoring.score import score_models

TASKS = {
    "echo": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["<eos>"], do_sample: false, max_gen_toks: 3}
filter_list:
  - name: first-letter
    filter: [{function: regex, regex_pattern: "([a-z0-9])"}, {function: take_first}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "surprise": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]
""",
    "choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["a", "b", "c"]
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
}
GROUP = """
group: both
task: [echo, choice]
aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]
"""
HEADER = "task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """A model this small is slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An include path with three tasks and a group of two of them, never written to."""
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder)
    return folder


def write_tasks(folder: Path, documents: int = 12) -> None:
    draw = random.Random(0)
    lines = []
    for _ in range(documents):
        letters = [draw.choice("abcdefgh") for _ in range(4)]
        lines.append({"question": "".join(letters), "answer": letters[0], "label": draw.randrange(3)})
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, body in TASKS.items():
        (folder / f"{name}.yaml").write_text(HEADER.format(name=name, data=data) + body)
    (folder / "both.yaml").write_text(GROUP)


@pytest.fixture
def own_tasks(tmp_path: Path) -> Path:
    """The same tasks, for a test that changes them."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_tasks(folder)
    return folder


@pytest.fixture(scope="session")
def settings(tasks: Path) -> EvaluationSection:
    return EvaluationSection(tasks=list(TASKS), include_path=str(tasks), batch_size=4, device="cpu")


@pytest.fixture(scope="session")
def models(family: list[Path]) -> dict[str, str]:
    return {path.name: str(path) for path in family}


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory, models: dict[str, str], settings: EvaluationSection) -> Path:
    """The output folder of a whole run over all models and tasks, never written to."""
    out = tmp_path_factory.mktemp("scored")
    score_models(models, settings, out)
    return out


@pytest.fixture
def short(settings: EvaluationSection) -> EvaluationSection:
    """Settings for the tests that score again: one task."""
    return settings.model_copy(update={"tasks": ["choice"]})
