"""The experiment file: one YAML that names the model, the data, the orders, the training, the merges, the evaluation.

The schema is pydantic's; unknown keys are refused, and all problems are reported together.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from ordermerge.errors import UserError, did_you_mean
from ordermerge.files import read_yaml
from ordermerge.pairs import read_pairs
from ordermerge.sections import CheckpointsSection, DataSection, EvaluationSection, ModelSection, OrdersSection, Section

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
DATA_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv")
MADE_WITH = "made_with"  # in a run directory's resolved experiment: the original file, versions, commit


class Experiment(Section):
    """A whole experiment file.

    Attributes:
        name: Names the run directory.
        model: The base model.
        data: The training data.
        orders: The K training orders.
        sft: Fields of TRL's SFTConfig.
        lora: Fields of PEFT's LoraConfig, and `save_as`; None trains all weights.
        checkpoints: What is saved of a training before its end.
        merges: Name of each merge, and its mergekit recipe without the models.
        evaluation: What to score; None scores nothing.
        directory: Folder of the experiment file, where its relative paths start.
    """

    name: Name
    model: ModelSection
    data: DataSection
    orders: OrdersSection
    sft: dict[str, Any] = Field(default_factory=dict)
    lora: dict[str, Any] | None = None
    checkpoints: CheckpointsSection = CheckpointsSection()
    merges: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    evaluation: EvaluationSection | None = None
    directory: Annotated[Path, Field(exclude=True)] = Path()

    def locate(self, path: str) -> Path | None:
        """Return the absolute path of a file or folder that the experiment names, or None where there is none.

        Args:
            path: As written: relative to the experiment file, else to the working directory.
        """
        found = (p for p in (self.directory / path, Path(path)) if p.exists())
        return next((p.resolve() for p in found), None)

    @property
    def saves_adapters(self) -> bool:
        """Whether the sub-models are LoRA adapters, which need their base model to be loaded."""
        return self.lora is not None and self.lora.get("save_as", "adapter") == "adapter"

    def model_path(self) -> str:
        """Return the base model as an absolute path, or as the hub id it then must be."""
        return str(self.locate(self.model.path) or self.model.path)

    def model_reference(self) -> str:
        """Return the base model as mergekit writes it: an absolute path, or hub id and revision as `id@revision`."""
        at = f"@{self.model.revision}" if self.model.revision and not self.locate(self.model.path) else ""
        return f"{self.model_path()}{at}"


def load_experiment(path: Path) -> Experiment:
    """Read and check an experiment file.

    Args:
        path: The YAML file; or the resolved one of a run directory, whose relative paths start where the original's do.

    Returns:
        The experiment, with defaults filled in.

    Raises:
        UserError: With every problem found: unreadable file, unknown keys, missing or wrong values.
    """
    content = read_yaml(path)
    made_with = content.pop(MADE_WITH, None)
    original = made_with.get("file") if isinstance(made_with, dict) else None
    try:
        return Experiment.model_validate({**content, "directory": Path(original or path.resolve()).parent})
    except ValidationError as error:
        raise UserError([_sentence(detail) for detail in error.errors()], where=path) from None


def evaluation_section(values: Mapping[str, Any]) -> EvaluationSection:
    """Return an evaluation section made of single values, such as a command line's.

    Args:
        values: By key of the section; `model_args`, `gen_kwargs` and `metadata` may be text as for lm-eval's command,
            `key=value,key=value` or a JSON object.

    Raises:
        UserError: With every problem found.
    """
    given = dict(values)
    for key in ("model_args", "gen_kwargs", "metadata"):
        if isinstance(text := given.get(key), str):
            given[key] = read_pairs(key, text)
    if str(given.get("batch_size")).isdigit():
        given["batch_size"] = int(given["batch_size"])
    try:
        return EvaluationSection.model_validate(given)
    except ValidationError as error:
        raise UserError(_sentence(detail) for detail in error.errors()) from None


def _sentence(detail: ErrorDetails) -> str:
    """Turn one of pydantic's errors into a sentence that names the key, and the remedy where there is one."""
    where = ".".join(str(part) for part in detail["loc"] if not str(part).startswith("constrained-"))
    if detail["type"] == "extra_forbidden":
        return f"unknown key `{where}`{did_you_mean(str(detail['loc'][-1]), _keys_at(detail['loc'][:-1]))}"
    if detail["type"] == "missing":
        return f"key `{where}` is missing"
    if detail["type"] == "value_error":
        return f"`{where}` {detail['ctx']['error']}"
    if detail["type"] == "string_pattern_mismatch":
        return f"`{where}` must be a plain name (letters, digits, `.`, `_`, `-`); got {detail['input']!r}"
    return f"`{where}`: {detail['msg'][0].lower()}{detail['msg'][1:]}; got {detail['input']!r}"


def _keys_at(location: Sequence[int | str]) -> list[str]:
    """Return the keys the schema knows at a place of the file."""
    fields = Experiment.model_fields
    for part in location:
        annotation = fields[str(part)].annotation
        sections = [annotation, *getattr(annotation, "__args__", ())]
        fields = next(s for s in sections if isinstance(s, type) and issubclass(s, BaseModel)).model_fields
    return [name for name in fields if name != "directory"]
