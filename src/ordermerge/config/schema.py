"""The keys of the experiment file: their types and defaults."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from lm_eval.config.evaluate_config import EvaluatorConfig
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, create_model, model_validator

from ordermerge.config.key_value import Pairs, read_switch
from ordermerge.config.library_fields import section_fields
from ordermerge.errors import quoted


class Section(BaseModel):
    """A part of an experiment file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(Section):
    """The base model.

    Attributes:
        path: Local folder or hub id.
        revision: Hub revision.
        dtype: What the weights are stored and trained in; TRL's own default is float32.
    """

    path: Annotated[str, Field(examples=["HuggingFaceTB/SmolLM2-135M"])]
    revision: str | None = Field(default=None, examples=["main"])
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on this machine, whose path is absolute once the experiment is loaded."""
        return Path(self.path).is_absolute()

    @property
    def reference(self) -> str:
        """The model as mergekit writes it: an absolute path, or hub id and revision as `id@revision`."""
        return f"{self.path}@{self.revision}" if self.revision and not self.is_local else self.path


class DataSection(Section):
    """The training data, and how a record becomes a sample.

    Attributes:
        train: A json, jsonl, parquet or csv file, or a hub dataset id.
        config: The hub dataset's configuration.
        revision: The hub dataset's revision.
        split: The hub dataset's split.
        validation: A file or hub id of the same form, or the fraction of the training data to hold out.
        validation_split: The split to validate on: of the hub dataset in `validation`, else of the one in `train`.
        prompt: Template over a record's fields, such as "{question}".
        completion: Template of what is learned.
        messages: Field that holds chat messages, instead of the two templates.
    """

    train: Annotated[str, Field(examples=["train.jsonl"])]
    config: str | None = Field(default=None, examples=["socratic"])
    revision: str | None = Field(default=None, examples=["main"])
    split: str = "train"
    validation: str | Annotated[float, Field(gt=0, lt=1)] | None = Field(default=None, examples=["valid.jsonl"])
    validation_split: str | None = Field(default=None, examples=["test"])
    prompt: str | None = Field(default=None, examples=["{question}"])
    completion: str | None = Field(default=None, examples=["{answer}"])
    messages: str | None = Field(default=None, examples=["messages"])

    @property
    def has_validation(self) -> bool:
        """Whether there is validation data."""
        return self.validation is not None or self.validation_split is not None

    @model_validator(mode="after")
    def _one_form(self) -> "DataSection":
        templates = (self.prompt is not None, self.completion is not None)
        if self.messages is None and not all(templates):
            raise ValueError("needs `prompt` and `completion` (templates), or `messages` (a field of chat messages)")
        if self.messages is not None and any(templates):
            raise ValueError("takes `messages`, or `prompt` and `completion`, not both")
        return self


def _check_branch(value: object) -> object:
    steps = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if steps or (isinstance(value, float) and 0 <= value < 1):
        return value
    raise ValueError(f"must be a number of steps (50) or a fraction below 1 (0.75); got {quoted(value)}")


class OrdersSection(Section):
    """The K training orders.

    Attributes:
        count: K, the number of sub-models, where something is varied for each value of it; 1 is the plain fine-tuning.
        strategy: How the orders differ.
        seed: Names the orders.
        file: The user's own orders, for the strategy `file`: a safetensors or JSON file, or a run's `orders` folder.
        branch_at: How many optimizer steps, or which fraction of them, all orders share; None for none.
        unit: What moves: samples, or packs of them, which `sft.packing` makes.
    """

    count: Annotated[int, Field(ge=1, le=1000, examples=[4])]
    strategy: Literal["random", "batch", "rotate", "file"] = "random"
    seed: int = 0
    file: str | None = Field(default=None, examples=["orders.json"])
    branch_at: Annotated[int | float, BeforeValidator(_check_branch)] | None = Field(default=None, examples=[0.5])
    unit: Literal["sample", "pack"] = "sample"

    @model_validator(mode="after")
    def _file_goes_with_its_strategy(self) -> "OrdersSection":
        if self.strategy == "file" and self.file is None:
            raise ValueError("needs `file`, your orders, for `strategy: file`")
        if self.strategy != "file" and self.file is not None:
            raise ValueError(
                f"takes `file` only with `strategy: file`; got `strategy: {self.strategy}`, `file: {self.file}`"
            )
        return self


def _check_cadence(value: object) -> object:
    steps = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if steps or (isinstance(value, float) and 0 < value <= 1):
        return value
    raise ValueError(f"must be a number of steps (50) or a fraction of the training (0.25); got {quoted(value)}")


Cadence = Annotated[int | float, BeforeValidator(_check_cadence)]


class CheckpointsSection(Section):
    """What is saved of a training before its end.

    Attributes:
        every: Keep the model each so many steps, or each such fraction of the training; None keeps only the end.
        resume_every: Save what an interrupted order goes on from this often; None does so after each epoch.
    """

    every: Cadence | None = Field(default=None, examples=[50])
    resume_every: Cadence | None = Field(default=None, examples=[0.25])


class ControlSection(Section):
    """A training that merges are held against: the fields of `sft` that differ from the orders', and `count`.

    Attributes:
        count: How many runs of it there are, in the orders of as many sub-models.
    """

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    count: Annotated[int, Field(ge=1)] = 1

    @property
    def sft(self) -> dict[str, Any]:
        """The fields of `sft` that differ."""
        return dict(self.model_extra or {})


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class RoundsSection(Section):
    """Merging, and training on from the merge in new orders, several times.

    Attributes:
        count: How many rounds; 1 is no other than without.
        merge: The merge that the next round is trained on from.
        number: Which round this is; `run` counts, in the experiment that it writes down.
    """

    count: Annotated[int, Field(ge=1, le=100, examples=[2])]
    merge: Annotated[Name, Field(examples=["weighted_average"])]
    number: Annotated[int, Field(ge=1)] = 1


LONGER = "longer"  # the control of the price of all orders together
ANNEALED = "annealed"  # the control of the price of one order whose schedule decays to 0


def _read_controls(value: object) -> object:
    """Return controls without those that are switched off; only the two that define themselves can be `true`."""
    if not isinstance(value, dict):
        return value
    if bare := [name for name, given in value.items() if given is True and name not in (LONGER, ANNEALED)]:
        raise ValueError(
            f"takes `true` for `{LONGER}` and `{ANNEALED}`; give `{bare[0]}` the `sft` fields that differ, such as "
            "{learning_rate: 2.0e-3}"
        )
    return {name: {} if given is True else given for name, given in value.items() if given is not False}


# What `ordermerge` decides itself of an evaluation; lm-eval's own command takes them.
_PLACED = "`ordermerge` keeps lm-eval's results and samples where it finds them again"
_COMPARED = "all models are scored alike, so that they can be compared"
_LOGGED = "results are written to files; log them from there"
EVALUATION_OWNED = {
    "config": "the `evaluation` section is the configuration",
    "output_path": _PLACED,
    "log_samples": _PLACED,
    "predict_only": "without scores there is nothing to compare",
    "use_cache": "scores are kept with what they were made from; a cache does not know the model's weights",
    "cache_requests": "a cache of requests does not know the tasks' files",
    "seed": _COMPARED,
    "samples": "score fewer documents with `limit`, or choose them in a task file of your own",
    "check_integrity": "it tests lm-eval's own tasks",
    "write_out": "it prints prompts; look at the sample files",
    "show_config": _PLACED,
    "verbosity": "set the environment variable LMEVAL_LOG_LEVEL",
    "wandb_args": _LOGGED,
    "wandb_config_args": _LOGGED,
    "hf_hub_log_args": _LOGGED,
    "trackio_args": _LOGGED,
}
_EvaluatorFields: Any = create_model(
    "_EvaluatorFields", __base__=Section, **section_fields(EvaluatorConfig, EVALUATION_OWNED)
)


class EvaluationSection(_EvaluatorFields):
    """What lm-evaluation-harness is asked for: the fields of its EvaluatorConfig, less `EVALUATION_OWNED`.

    Those that `ordermerge` defines otherwise:

    Attributes:
        tasks: Task names, at least one.
        apply_chat_template: Wrap requests in the model's chat template, or in the named one of several.
        batch_size: A number, or "auto", as lm-eval's command takes it.
        max_batch_size: The largest that "auto" may choose.
        device: Such as "cuda:0"; the first GPU, or the CPU where there is none, if not given.
        model_args: Further arguments of the backend; this and the next two also as text, `key=value,key=value` or JSON.
        gen_kwargs: Generation arguments; they go before those of the tasks.
        metadata: What the tasks' readers of data are given, such as `data_files`.
        ensemble: Whether to score the mean of the sub-models' probabilities too, beside the merges.
    """

    tasks: Annotated[list[str], Field(min_length=1, examples=[["gsm8k"]])]
    apply_chat_template: Annotated[bool | str, BeforeValidator(read_switch)] = False
    batch_size: int | str = 1
    max_batch_size: Annotated[int, Field(gt=0)] | None = Field(default=None, examples=[64])
    device: str | None = Field(default=None, examples=["cpu"])
    model_args: Pairs = Field(default_factory=dict)
    gen_kwargs: Pairs = Field(default_factory=dict)
    metadata: Pairs = Field(default_factory=dict)
    ensemble: bool = False


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
        vary: Further such fields, each with the values that are crossed with the orders.
        lora: Fields of PEFT's LoraConfig, and `save_as`; None trains all weights.
        checkpoints: What is saved of a training before its end.
        controls: Name of each training that merges are held against.
        merges: Name of each merge, and its mergekit recipe without the models.
        rounds: How often to merge and to train on from the merge; None for once.
        evaluation: What to score; None scores nothing.
        directory: Folder of the experiment file, where its relative paths start; `load_experiment` has followed them.
    """

    name: Annotated[Name, Field(examples=["quickstart"])]
    model: ModelSection
    data: DataSection
    orders: OrdersSection
    sft: dict[str, Any] = Field(default_factory=dict, examples=[{"learning_rate": 1e-5}])
    vary: dict[str, Annotated[list[Any], Field(min_length=2)]] = Field(
        default_factory=dict, examples=[{"learning_rate": [1e-5, 2e-5]}]
    )
    lora: dict[str, Any] | None = Field(default=None, examples=[{"r": 8}])
    checkpoints: CheckpointsSection = CheckpointsSection()
    controls: Annotated[dict[Name, ControlSection], BeforeValidator(_read_controls)] = Field(
        default_factory=dict, examples=[{"annealed": True}]
    )
    merges: dict[Name, dict[str, Any]] = Field(
        default_factory=dict, examples=[{"average": {"merge_method": "linear", "parameters": {"weight": 1}}}]
    )
    rounds: RoundsSection | None = None
    evaluation: EvaluationSection | None = None
    directory: Annotated[Path, Field(exclude=True)] = Path()

    @model_validator(mode="before")
    @classmethod
    def _empty_section_is_absent(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        return {key: value for key, value in content.items() if value is not None or key not in cls.model_fields}

    @property
    def count(self) -> int:
        """K, the number of sub-models: of orders, times the values of what is varied."""
        return self.orders.count * math.prod(map(len, self.vary.values()))

    @property
    def saves_adapters(self) -> bool:
        """Whether the sub-models are LoRA adapters, which need their base model to be loaded."""
        return self.lora is not None and self.lora.get("save_as", "adapter") == "adapter"
