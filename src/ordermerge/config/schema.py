"""The keys of the experiment file: their types and defaults."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

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

    path: str
    revision: str | None = None
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

    train: str
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    validation: str | Annotated[float, Field(gt=0, lt=1)] | None = None
    validation_split: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None

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


class OrdersSection(Section):
    """The K training orders.

    Attributes:
        count: K, the number of sub-models.
        strategy: How the orders differ.
        seed: Names the orders.
        file: The user's own orders, for the strategy `file`: a safetensors or JSON file, or a run's `orders` folder.
    """

    count: Annotated[int, Field(ge=2, le=1000)]
    strategy: Literal["random", "batch", "rotate", "file"] = "random"
    seed: int = 0
    file: str | None = None

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

    every: Cadence | None = None
    resume_every: Cadence | None = None


class EvaluationSection(Section):
    """What lm-evaluation-harness is asked for; the names are its own.

    Attributes:
        tasks: Task names.
        include_path: Folder of local task YAML files.
        model: lm-eval's model backend.
        model_args: Further arguments of the backend.
        batch_size: A number, or "auto".
        max_batch_size: The largest that "auto" may choose.
        device: Such as "cuda:0"; the first GPU, or the CPU where there is none, if not given.
        num_fewshot: Examples before each question.
        limit: Score only this many documents (or this fraction) of each task.
        apply_chat_template: Whether to wrap requests in the model's chat template, or the name of one of its templates.
        fewshot_as_multiturn: Whether examples are turns of their own in a chat; lm-eval's default is yes.
        system_instruction: Text at the start of every request.
        gen_kwargs: Generation arguments; they go before those of the tasks.
        metadata: What the tasks' readers of data are given, such as `data_files`.
        confirm_run_unsafe_code: Consent to run model-written code, for the tasks that ask for it.
        ensemble: Whether to score the mean of the sub-models' probabilities too, beside the merges.
    """

    tasks: Annotated[list[str], Field(min_length=1)]
    include_path: str | None = None
    model: str = "hf"
    model_args: dict[str, Any] = {}
    batch_size: int | str = 1
    max_batch_size: Annotated[int, Field(gt=0)] | None = None
    device: str | None = None
    num_fewshot: int | None = None
    limit: float | None = None
    apply_chat_template: bool | str = False
    fewshot_as_multiturn: bool | None = None
    system_instruction: str | None = None
    gen_kwargs: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    confirm_run_unsafe_code: bool = False
    ensemble: bool = False


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


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
        directory: Folder of the experiment file, where its relative paths start; `load_experiment` has followed them.
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

    @property
    def saves_adapters(self) -> bool:
        """Whether the sub-models are LoRA adapters, which need their base model to be loaded."""
        return self.lora is not None and self.lora.get("save_as", "adapter") == "adapter"
