"""`ordermerge frank-wolfe`: a run's sub-models merged step by step along the gradient of the validation loss.

FW-Merging (Chen et al., "FW-Merging: Scaling Model Merging with Frank-Wolfe Optimization", arXiv 2503.12649), with the
choice made tensor by tensor. One model and its gradient are in memory, however many sub-models there are.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mergekit.io.lazy_tensor_loader import LazyTensorLoader, ShardedTensorIndex
from typing_extensions import TypedDict

from ordermerge.commands.merge_output import merge_output
from ordermerge.companions import copy_companions
from ordermerge.config.schema import Experiment
from ordermerge.console import quiet, say
from ordermerge.errors import UserError, quoted
from ordermerge.files import file_records, fingerprint, write_json
from ordermerge.models import MERGE_MARKER, identity, model_folder
from ordermerge.provenance import record
from ordermerge.run_directory import open_run, order_folder
from ordermerge.stages import mark_done
from ordermerge.train.base_model import load_model, load_tokenizer
from ordermerge.train.samples import load_samples
from ordermerge.train.sft import make_trainer
from ordermerge.yaml_json import read_json

FOLDER = "frank_wolfe"
STEPS = "frank_wolfe.json"  # in the run directory: what was chosen so far


class Taken(TypedDict):
    """One step: the validation loss before it, and each tensor's choice of order, None where none lowers the loss."""

    loss: float
    picks: dict[str, int | None]


class Progress(TypedDict):
    """The steps taken, and what they were taken with."""

    inputs: dict[str, Any]
    steps: list[Taken]


def choose(gradient: torch.Tensor, updates: Sequence[torch.Tensor]) -> int | None:
    """Return the update that points most against the gradient: the one of smallest cosine with it.

    Args:
        gradient: Of the loss, by the values of one tensor.
        updates: The sub-models' changes of that tensor, of the same shape.

    Returns:
        Its place; None, for no change at all, where no cosine is below 0.
    """
    flat = gradient.flatten()
    cosines = [torch.cosine_similarity(flat, update.flatten(), dim=0).item() for update in updates]
    best = min(range(len(cosines)), key=cosines.__getitem__)
    return best if cosines[best] < 0 else None


def share_of_step(step: int, scale: float, step_size: float) -> float:
    """Return how far step t = 0, 1, ... goes from the merged change to the chosen one: scale * step_size * 2 / (t + 2).

    Args:
        step: t.
        scale: Multiplies every step, and the sum that the first one starts from.
        step_size: Multiplies the steps.
    """
    return scale * step_size * 2 / (step + 2)


def merge_along_gradient(run: Path, *, steps: int = 10, scale: float = 0.3, step_size: float = 1.0) -> Path:
    """Merge a finished run's sub-models, from their scaled sum on, and write the model to `RUN/frank_wolfe`.

    What was chosen is noted after each step; interrupted, it goes on from there.

    Args:
        run: The run directory, whose experiment has validation data and trains whole models.
        steps: How many steps to take in all.
        scale: Multiplies the sub-models' changes.
        step_size: Multiplies the steps.

    Returns:
        The model's folder.

    Raises:
        UserError: If the run has no validation data, has adapters, or a model lacks a tensor.
    """
    experiment = open_run(run)
    if not experiment.data.has_validation:
        raise UserError(f"{run}: its experiment has no `data.validation`, whose loss the steps are to lower")
    if experiment.saves_adapters:
        raise UserError(f"{run}: its sub-models are adapters; train with `lora.save_as: dense` for this")
    if not 0 < scale <= 1 or not 0 < step_size <= 1:
        raise UserError(f"--scale and --step-size must be above 0, at most 1; got {quoted(scale)}, {quoted(step_size)}")
    folders = [order_folder(run.resolve(), order) for order in range(experiment.count)]
    inputs = {"scale": scale, "step_size": step_size, "models": fingerprint([identity(str(one)) for one in folders])}
    out = run.resolve() / FOLDER
    with quiet(), merge_output(out, None) as partial, TemporaryDirectory() as scratch:
        assert partial is not None  # there is no step that another process could have made
        merging = _Merging(experiment, folders, scale, step_size, Path(scratch))
        taken = _steps_so_far(run / STEPS, inputs, steps)
        for number, step in enumerate(taken):
            merging.advance(number, step["picks"])
        for number in range(len(taken), steps):
            loss = merging.look()
            taken.append(Taken(loss=loss, picks=merging.advance(number)))
            write_json(run / STEPS, Progress(inputs=inputs, steps=taken))
            say(f"step {number + 1} of {steps}: validation loss {loss:.4f} before it")
        merging.save(partial, experiment.model.dtype)
        copy_companions(folders[0], partial, lambda name: True)
        noted = {"steps": taken, **record(run)}
        mark_done(partial / MERGE_MARKER, {**inputs, "steps": steps}, noted, files=file_records(partial))
    return out


class _Merging:
    """The merged model, in float32, and the models it is made of, read tensor by tensor."""

    def __init__(self, experiment: Experiment, folders: Sequence[Path], scale: float, step_size: float, scratch: Path):
        self._scale, self._step_size = scale, step_size
        evaluated = experiment.model_copy(update={"sft": {**experiment.sft, "eval_strategy": "epoch"}})
        loaded = load_model(evaluated)
        self._model = loaded.model.float()
        samples, tokenizer = load_samples(evaluated), load_tokenizer(evaluated)
        self._trainer = make_trainer(evaluated, FOLDER, loaded, tokenizer, samples, scratch)
        base = model_folder(experiment.model.reference) or Path(experiment.model.path)
        self._base, *self._subs = (_Reader(folder) for folder in (base, *folders))
        for _, parameter, origin, updates in self._tensors():
            parameter.data.copy_(origin + scale * torch.stack(updates).sum(dim=0))

    def look(self) -> float:
        """Return the validation loss, the mean over batches, with its gradient left in the model."""
        batches = self._trainer.get_eval_dataloader()
        self._model.eval()
        self._model.zero_grad()
        total = 0.0
        for batch in batches:
            loss = self._trainer.compute_loss(self._model, batch) / len(batches)
            loss.backward()
            total += float(loss.detach())
        return total

    def advance(self, step: int, picks: Mapping[str, int | None] | None = None) -> dict[str, int | None]:
        """Move each tensor towards a change: what was chosen before, or what the gradient chooses now.

        Args:
            step: The step, from 0.
            picks: The changes' places, by tensor; None to choose.

        Returns:
            The places.
        """
        share, taken = share_of_step(step, self._scale, self._step_size), {}
        for name, parameter, origin, updates in self._tensors():
            gradient = parameter.grad
            chosen = picks[name] if picks else None if gradient is None else choose(gradient, updates)
            parameter.data.lerp_(origin if chosen is None else origin + updates[chosen], share)
            taken[name] = chosen
        return taken

    def save(self, folder: Path, dtype: str) -> None:
        """Write the merged model."""
        self._model.to(getattr(torch, dtype)).save_pretrained(folder)

    def _tensors(self) -> Iterator[tuple[str, torch.nn.Parameter, torch.Tensor, list[torch.Tensor]]]:
        for name, parameter in self._model.named_parameters():
            origin = self._base.read(name).to(parameter)
            yield name, parameter, origin, [sub.read(name).to(parameter) - origin for sub in self._subs]


class _Reader:
    def __init__(self, folder: Path):
        self._folder = folder
        self._loader = LazyTensorLoader(ShardedTensorIndex.from_disk(str(folder)), lazy_unpickle=True)

    def read(self, name: str) -> torch.Tensor:
        tensor = self._loader.get_tensor(name, raise_on_missing=False)
        if tensor is None:
            raise UserError(f"{self._folder}: has no tensor {name}, which the loaded model has; it cannot be followed")
        return tensor


def _steps_so_far(file: Path, inputs: dict[str, Any], most: int) -> list[Taken]:
    """Return the steps that were noted, if they were taken with the same models and sizes."""
    if not file.exists():
        return []
    noted = read_json(file, Progress, remedy="delete it, to begin again")
    if noted["inputs"] != inputs:
        say(f"{file} is of other models or sizes: begins again")
        return []
    return noted["steps"][:most]
