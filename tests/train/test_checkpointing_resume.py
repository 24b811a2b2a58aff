"""An interrupted order goes on where it can, and ends in the same bits as one that was never interrupted."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerState

from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.files import file_problems
from ordermerge.train.callbacks import Saver
from ordermerge.train.checkpointing import TrainingIdentity, find_resume_point, mark_complete, problem_of
from ordermerge.train.sft import train_orders
from ordermerge.train.trainer import OrderTrainer

Write = Callable[..., Experiment]
# Seven steps an epoch in one process, four in two; dropout and the schedule both need their state back.
LONG = {"num_train_epochs": 3, "lr_scheduler_type": "linear", "logging_steps": 4}
KILLER = """
import os, signal
from ordermerge.cli import main
from ordermerge.train.trainer import OrderTrainer

step = OrderTrainer.training_step

def kill(self, *args):
    if self.state.global_step == int(os.environ["KILL_AT_STEP"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args)

OrderTrainer.training_step = kill
main(prog_name="ordermerge")
"""


@pytest.fixture
def write(write_experiment: Write, dropping: Path) -> Write:
    """Return a function that writes a longer experiment, over a base model with dropout."""

    def write(**sections: dict[str, Any]) -> Experiment:
        sections["sft"] = {**LONG, **sections.get("sft", {})}
        return write_experiment(model={"path": str(dropping)}, **sections)

    return write


def _files(directory: Path) -> dict[str, Any]:
    """Return each file's content; of the record, all but what an interruption is allowed to change."""
    files = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    contents: dict[str, Any] = {name: path.read_bytes() for name, path in files.items()}
    record = json.loads(contents["order/order.json"])
    made = {name: {**of, "modified": None} for name, of in record["files"].items()}
    return contents | {"order/order.json": {**record, "seconds": None, "resumed_after_step": None, "files": made}}


def _resumed_after(directory: Path) -> int | None:
    return json.loads((directory / "order" / "order.json").read_text())["resumed_after_step"]


def _interrupt(experiment: Experiment, run_directory: Path, at_step: int) -> Path:
    """Train order 0 until an exception; return the folder of its training checkpoints."""
    step = OrderTrainer.training_step

    def interrupt(self: OrderTrainer, *args: Any) -> torch.Tensor:
        if self.state.global_step == at_step:
            raise KeyboardInterrupt
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OrderTrainer, "training_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_orders(experiment, run_directory, only=0)
    (state,) = (run_directory / "orders").glob(".0.partial-*/state")
    return state


def _train(path: Path, runs: Path, processes: int, kill_at: int | None = None) -> subprocess.CompletedProcess[str]:
    """Train order 0 with the real command, or with it and a process that kills itself at a step."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    program = ["-m", "ordermerge"]
    if kill_at is not None:
        (path.parent / "killer.py").write_text(KILLER)
        program = [str(path.parent / "killer.py")]
    command = [sys.executable, *launcher, *program, "train", str(path), "--order", "0", "--runs-dir", str(runs)]
    more = {"OMP_NUM_THREADS": "1", "KILL_AT_STEP": str(kill_at)}
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **more}, check=False)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("processes", "resume_every", "kill_at", "resumed_after"), [(1, None, 11, 7), (1, 3, 11, 9), (2, 3, 7, 6)]
)
def test_an_order_killed_in_its_second_epoch_ends_in_the_same_bits(
    processes: int, resume_every: int | None, kill_at: int, resumed_after: int, write: Write, tmp_path: Path
):
    write(checkpoints={"every": 5, "resume_every": resume_every})
    path = tmp_path / "experiment.yml"
    whole = _train(path, tmp_path / "whole", processes)
    assert whole.returncode == 0, whole.stderr
    killed = _train(path, tmp_path / "killed", processes, kill_at)
    assert killed.returncode not in (0, 2), killed.stderr
    orders = tmp_path / "killed" / "tiny" / "orders"
    assert {folder.name[:11] for folder in orders.iterdir()} - {".0.lock"} == {".0.partial-"}
    continued = _train(path, tmp_path / "killed", processes)
    assert continued.returncode == 0, continued.stderr
    assert f"order_0: goes on after step {resumed_after}\n" in continued.stderr
    assert [folder.name for folder in orders.iterdir()] == ["0"]
    assert _resumed_after(orders / "0") == resumed_after
    expected = _files(tmp_path / "whole" / "tiny" / "orders" / "0")
    assert _files(orders / "0") == expected
    told = {"processes": processes, "batch_size": 6 * processes, "samples_consumed": {1: 120, 2: 126}[processes]}
    told |= {"padding_repeats": {1: 0, 2: 6}[processes], "steps": {1: 21, 2: 12}[processes], "threads": 1}
    assert {name: expected["order/order.json"][name] for name in told} == told
    # Whoever speaks, speaks once for all processes.
    assert whole.stdout.splitlines() == [str(tmp_path / "whole" / "tiny" / "orders" / "0")]
    assert whole.stderr.count("order_0: training on 40 samples") == 1
    assert ("6 samples were trained on twice in an epoch" in whole.stderr) == (processes == 2)


@pytest.fixture
def whole(write: Write, tmp_path: Path) -> dict[str, Any]:
    """Return the files of order 0, never interrupted."""
    return _files(train_orders(write(), tmp_path / "whole", only=0)[0])


@pytest.mark.parametrize(
    "name",
    ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors", "complete.json"],
)
@pytest.mark.parametrize("broken", ["shortened", "removed", "overwritten", "flipped"])
def test_a_checkpoint_with_a_broken_file_is_not_whole(
    name: str, broken: str, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
):
    copy = tmp_path_factory.mktemp("state") / checkpoint.name
    copy.mkdir()
    for path in checkpoint.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert problem_of(copy) is None
    content = (copy / name).read_bytes()
    flipped = bytes([content[0] ^ 1]) + content[1:]
    contents = {"shortened": content[:-40], "removed": b"", "overwritten": bytes(len(content)), "flipped": flipped}
    (copy / name).write_bytes(contents[broken])
    if broken == "removed":
        (copy / name).unlink()
    assert str(copy) in (problem_of(copy) or "")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole training checkpoint of a tiny model."""
    folder = tmp_path_factory.mktemp("work") / "state" / "checkpoint-3"
    model = torch.nn.Linear(20, 20)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(20)).sum().backward()
    optimizer.step()
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(torch.optim.lr_scheduler.ConstantLR(optimizer).state_dict(), folder / "scheduler.pt")
    torch.save({"cpu": torch.get_rng_state()}, folder / "rng_state.pth")
    TrainerState(global_step=3).save_to_json(str(folder / "trainer_state.json"))
    mark_complete(folder, TrainingIdentity({"order": 0}, 1, 1))
    return folder


def test_a_half_written_checkpoint_is_passed_over_for_the_one_before(
    write: Write, whole: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    experiment = write(checkpoints={"resume_every": 4})
    state = _interrupt(experiment, tmp_path / "run", 10)
    (later,) = state.iterdir()
    assert later.name == "checkpoint-8"
    half = state / "checkpoint-9"
    half.mkdir()
    (half / "model.safetensors").write_bytes((later / "model.safetensors").read_bytes())
    (directory,) = train_orders(experiment, tmp_path / "run", only=0)
    said = capsys.readouterr().err
    assert re.search(r"order_0: cannot go on from step 9: /.*/state/checkpoint-9 was not written to its end\n", said)
    assert "order_0: goes on after step 8\n" in said
    assert _resumed_after(directory) == 8
    assert _files(directory) == whole


def test_an_order_without_a_whole_checkpoint_begins_again_and_says_so(
    write: Write, whole: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    state = _interrupt(write(), tmp_path / "run", 10)
    optimizer = state / "checkpoint-7" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-100])
    (directory,) = train_orders(write(), tmp_path / "run", only=0)
    said = capsys.readouterr().err
    where = r"/.*/state/checkpoint-7/optimizer\.pt"
    assert re.search(
        rf"order_0: cannot go on from step 7: {where}: has \d+ bytes, and had \d+ when it was made\n", said
    )
    assert "order_0: begins again with the base model\n" in said
    assert _resumed_after(directory) is None
    assert _files(directory) == whole


@pytest.mark.parametrize(
    "damaged",
    [*(f"state/checkpoint-7/{name}" for name in ("model.safetensors", "optimizer.pt", "scheduler.pt")),
     "0/checkpoints/step-4/model.safetensors", "kept.json"],
)  # fmt: skip
def test_damage_that_changes_no_size_is_not_trained_on(
    damaged: str, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    experiment = write(checkpoints={"every": 4})
    (expected,) = train_orders(experiment, tmp_path / "expected", only=0)
    file = _interrupt(experiment, tmp_path / "run", 10).parent / damaged
    status, content = file.stat(), bytearray(file.read_bytes())
    content[0 if file.suffix == ".json" else len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    (directory,) = train_orders(experiment, tmp_path / "run", only=0)
    said = capsys.readouterr().err
    flaw = rf"/.*/{damaged}: is not what it was when it was made \(its SHA-256 is another\)\n"
    flaw = r"nothing says what /.*/step-4 held when it was made\n" if damaged == "kept.json" else flaw
    assert re.search(f"order_0: cannot go on from step 7: {flaw}", said)
    assert "order_0: begins again with the base model\n" in said
    assert _files(directory) == _files(expected)


def test_a_kept_model_that_changes_while_its_order_trains_is_told_afterwards(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def damage(self: Saver, args: Any, state: TrainerState, *rest: Any, **named: Any):
        if state.global_step == 14:
            (kept,) = tmp_path.glob("run/orders/.0.partial-*/0/checkpoints/step-8/model.safetensors")
            kept.write_bytes(bytes(kept.stat().st_size))

    monkeypatch.setattr(Saver, "on_epoch_begin", damage)
    (directory,) = train_orders(write(checkpoints={"every": 8}), tmp_path / "run", only=0)
    files = json.loads((directory / "order" / "order.json").read_text())["files"]
    (problem,) = file_problems(directory, files)
    assert problem.startswith(f"{directory}/checkpoints/step-8/model.safetensors: is not what it was")


def test_other_inputs_begin_again_and_are_named(
    write: Write, whole: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _interrupt(write(sft={"learning_rate": 0.5}, checkpoints={"every": 2}), tmp_path / "run", 10)
    (directory,) = train_orders(write(), tmp_path / "run", only=0)
    said = capsys.readouterr().err
    assert (
        "order_0: was interrupted after step 7 of a training with other inputs: sft.learning_rate: 0.5, now "
        "0.01; checkpoints.every: 2, now not set\norder_0: begins again with the base model\n"
    ) in said
    assert _files(directory) == whole


def test_an_interrupted_adapter_ends_in_the_same_bits(write: Write, tmp_path: Path):
    lora = {"r": 4, "lora_dropout": 0.3}
    (expected,) = train_orders(write(lora=lora), tmp_path / "expected", only=0)
    _interrupt(write(lora=lora), tmp_path / "run", 10)
    (directory,) = train_orders(write(lora=lora), tmp_path / "run", only=0)
    assert _resumed_after(directory) == 7
    assert _files(directory) == _files(expected)


@pytest.mark.parametrize(
    "sections",
    [
        {"sft": {"eval_strategy": "epoch", "eval_on_start": True}},
        {"sft": {"eval_strategy": "epoch"}, "lora": {"r": 4, "lora_dropout": 0.3}},
        {
            "sft": {
                "eval_strategy": "epoch",
                "lr_scheduler_type": "reduce_lr_on_plateau",
                "lr_scheduler_kwargs": {"patience": 0, "threshold": 0.5},
            }
        },
    ],
    ids=["dropout", "lora", "plateau"],
)
def test_interrupted_around_the_evaluation_at_an_epochs_end(sections: dict[str, Any], write: Write, tmp_path: Path):
    experiment = write(data={"validation": 0.2}, **sections)
    expected = _files(train_orders(experiment, tmp_path / "expected", only=0)[0])
    evaluated = [entry["step"] for entry in expected["order/order.json"]["eval_losses"]]
    assert evaluated == ([0] if "eval_on_start" in sections["sft"] else []) + [6, 12, 18]
    for place, resumed_after in {"on_evaluate": 6, "on_save": 6, "on_epoch_begin": 12}.items():
        original = getattr(Saver, place)

        def interrupt(self: Saver, args: Any, state: TrainerState, *rest: Any, to: Any = original, **named: Any):
            if state.global_step == 12:  # the end of the second of three epochs
                raise KeyboardInterrupt
            to(self, args, state, *rest, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Saver, place, interrupt)
            with pytest.raises(KeyboardInterrupt):
                train_orders(experiment, tmp_path / place, only=0)
        (directory,) = train_orders(experiment, tmp_path / place, only=0)
        assert _resumed_after(directory) == resumed_after, place
        assert _files(directory) == expected, place


def test_fields_without_effect_on_the_weights_do_not_matter(write: Write, tmp_path: Path):
    _interrupt(write(), tmp_path / "run", 10)
    (directory,) = train_orders(write(sft={"logging_steps": 3, "dataloader_num_workers": 1}), tmp_path / "run", only=0)
    assert _resumed_after(directory) == 7
    (plain,) = train_orders(write(), tmp_path / "plain", only=0)
    assert (directory / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    assert train_orders(write(sft={"report_to": "none", "run_name": "x"}), tmp_path / "run", only=0) == [directory]


def test_kept_models_of_steps_that_are_done_again_are_made_again(write: Write, tmp_path: Path):
    experiment = write(checkpoints={"every": 4})
    (expected,) = train_orders(experiment, tmp_path / "expected", only=0)
    state = _interrupt(experiment, tmp_path / "run", 9)
    kept = state.parent / "0" / "checkpoints"
    assert sorted(folder.name for folder in kept.iterdir()) == ["step-4", "step-8"]
    (kept / "step-8" / "model.safetensors").write_bytes(b"half")
    (kept / "step-8" / "left").touch()
    (directory,) = train_orders(experiment, tmp_path / "run", only=0)
    assert _resumed_after(directory) == 7
    assert _files(directory) == _files(expected)


def test_another_number_of_processes_is_refused_and_nothing_lost(checkpoint: Path):
    message = (
        r"holds an interrupted training over 1 processes, which 2 cannot go on with; start 1, or delete .* to begin"
    )
    with pytest.raises(UserError, match=message):
        find_resume_point(checkpoint.parents[1] / "0", TrainingIdentity({"order": 0}, 2, 1))
    assert problem_of(checkpoint) is None


def test_the_number_of_threads_is_kept(checkpoint: Path):
    start = find_resume_point(checkpoint.parents[1] / "0", TrainingIdentity({"order": 0}, 1, 3))
    assert (start.checkpoint, start.step, start.threads) == (checkpoint, 3, 1)
    assert start.notes == ["goes on after step 3", "keeps the 1 threads it began with, though 3 are set"]


def test_an_order_goes_on_with_the_threads_it_began_with(write: Write, tmp_path: Path):
    threads = torch.get_num_threads()
    _interrupt(write(), tmp_path / "run", 10)
    try:
        torch.set_num_threads(threads + 1)
        (directory,) = train_orders(write(), tmp_path / "run", only=0)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert _files(directory)["order/order.json"]["threads"] == threads
