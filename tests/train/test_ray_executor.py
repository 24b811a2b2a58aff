"""Orders on a real Ray cluster of this machine: the bits of a local run, deaths survived, failures named."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from ordermerge.cli import main
from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.locks import lock, waits
from ordermerge.progress import ProgressLine
from ordermerge.provenance import versions
from ordermerge.train import ray_executor
from ordermerge.train.ray_executor import Outcome, Resources, Task, train_task
from ordermerge.train.sft import order_steps, train_orders

Write = Callable[..., Experiment]
COMPARED = ["model.safetensors", "order/permutations.safetensors", "config.json", "tokenizer.json"]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests train with one thread; what a task changes in its process is changed back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(Path.cwd())
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _ray_environment() -> Iterator[None]:
    """Set before Ray is imported: the tests' cluster has a token of its own, so the user's is neither used nor made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Start a Ray cluster with two CPUs, and return the module."""
    ray = pytest.importorskip("ray", reason='needs Ray: pip install "ray>=2.40"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short, as sockets in it have at most 107 characters
    command = ["ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "2", "--num-gpus", "0"]
    command += ["--port", str(port), "--node-ip-address", "127.0.0.1", "--include-dashboard", "false"]
    head = subprocess.Popen(
        [sys.executable, "-m", *command, "--temp-dir", folder, "--disable-usage-stats"],
        env=os.environ | {"CI": "1", "RAY_worker_niceness": "0"},  # CI: see _no_telemetry
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        try:
            assert any("Ray runtime started" in line for line in head.stdout), "`ray start` failed"
            yield ray
        finally:
            head.terminate()
            head.communicate(timeout=60)
            shutil.rmtree(folder)


@pytest.fixture
def task(tmp_path: Path, write_experiment: Write) -> Callable[..., Task]:
    """Return a function that makes the task of order 1; the arguments replace its fields."""

    def make(**changes: Any) -> Task:
        experiment = write_experiment()
        (tmp_path / "probe").touch()
        fields = {
            "experiment": experiment,
            "run_directory": tmp_path / "run",
            "name": "order_1",
            "threads": 1,
            "gpus": 0,
            "working_directory": tmp_path,
            "probe": tmp_path / "probe",
            "seen": order_steps(experiment, tmp_path)[1].inputs | versions(),
        }
        return Task(**{**fields, **changes})

    return make


def test_a_task_tells_where_it_runs_then_trains_with_its_threads(
    task: Callable[..., Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ProgressLine, "is_due", lambda *_: True)  # as on a slow machine: not told afterwards
    torch.set_num_threads(2)
    place, outcome = train_task(task())
    assert place == f"{socket.gethostname()} (process {os.getpid()})"
    assert torch.get_num_threads() == 1
    assert outcome.problems == []
    assert [line.split(" in ")[0] for line in outcome.said] == [
        "training 1 sub-model, and what an interrupted order goes on from, takes up to 0.000344 GB of disk",
        "order_1: training on 40 samples, 2 epochs",
        "order_1: trained",
    ]
    assert os.listdir(tmp_path / "run" / "orders") == ["1"]


def test_relative_paths_start_where_the_command_was_given(task: Callable[..., Task], tmp_path: Path):
    made = task()
    elsewhere = made.experiment.model_copy(update={"directory": tmp_path / "elsewhere"})  # then: working directory
    (_, outcome) = train_task(task(experiment=elsewhere))
    assert outcome.problems == []


def test_a_task_waits_for_another_process_if_the_command_does(
    task: Callable[..., Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with ExitStack() as held:
        held.enter_context(lock(tmp_path / "run" / "orders" / "1"))
        _, outcome = train_task(task())
        assert "orders/1: process" in outcome.problems[0]
        assert "is making it; give the command again when that has ended, or with `--wait`" in outcome.problems[0]
        monkeypatch.setattr("ordermerge.locks.time", SimpleNamespace(sleep=lambda seconds: held.close()))
        _, outcome = train_task(task(waits=True))
    assert outcome.problems == []
    assert not waits.get()
    assert os.listdir(tmp_path / "run" / "orders") == ["1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"probe": Path("/nowhere/probe")},
            r"^node \S+ does not see /\S+/run of the machine where .*; the run directory \(`--runs-dir`\) and",
        ),
        ({"working_directory": Path("/nowhere")}, r"^node \S+ does not see /nowhere of the machine"),
    ],
)
def test_a_node_with_another_file_system_is_refused(
    changes: dict[str, Any], message: str, task: Callable[..., Task], tmp_path: Path
):
    _, outcome = train_task(task(**changes))
    assert re.match(message, outcome.problems[0])
    assert not (tmp_path / "run").exists()


def test_a_node_with_other_inputs_or_versions_is_refused(task: Callable[..., Task], tmp_path: Path):
    seen = task().seen
    other = {**seen, "torch": "1.0", "data": {}, "flash": "1"}
    _, outcome = train_task(task(seen=other))
    assert "has another torch, data, flash than the machine" in _sorted_like(outcome, ["torch", "data", "flash"])
    assert not (tmp_path / "run").exists()


def _sorted_like(outcome: Outcome, names: list[str]) -> str:
    (problem,) = outcome.problems
    found = re.search(r"another (.*) than", problem).group(1)
    assert sorted(found.split(", ")) == sorted(names)
    return problem.replace(found, ", ".join(names))


CPU, GPU = {"CPU": 8.0}, {"CPU": 4.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "resources", "gpus"),
    [
        ([CPU], Resources(), 0),
        ([CPU, GPU], Resources(), 1),
        ([CPU, GPU], Resources(gpus=0.5), 0.5),
        ([CPU, GPU], Resources(cpus=8, gpus=0), 0),
    ],
)
def test_an_order_gets_a_gpu_where_there_are_any(nodes: list[dict[str, float]], resources: Resources, gpus: float):
    assert ray_executor._gpus(nodes, resources) == gpus


@pytest.mark.parametrize(
    ("nodes", "resources", "message"),
    [
        ([CPU], Resources(gpus=1), r"the 1 CPU and 1 GPU that an order asks for \(nodes have 8 CPUs and 0 GPUs\)"),
        ([CPU, GPU], Resources(cpus=8), r"the 8 CPUs and 1 GPU .* have 4 CPUs and 2 GPUs; 8 CPUs and 0 GPUs\); change"),
    ],
)
def test_a_request_that_no_node_can_meet_is_refused(nodes: list[dict[str, float]], resources: Resources, message: str):
    with pytest.raises(UserError, match=message):
        ray_executor._gpus(nodes, resources)


def _train(tmp_path: Path, *options: str) -> Any:
    arguments = ["train", str(tmp_path / "experiment.yml"), "--runs-dir", str(tmp_path / "runs")]
    return CliRunner().invoke(main, [*arguments, "--executor", "ray", *options])


def test_missing_ray_is_said_with_the_remedy(tmp_path: Path, write_experiment: Write, monkeypatch: pytest.MonkeyPatch):
    write_experiment()
    monkeypatch.setitem(sys.modules, "ray", None)
    done = _train(tmp_path)
    expected = 'Error: `--executor ray` needs Ray, which is not installed: pip install "ray>=2.40"\n'
    assert (done.exit_code, done.output) == (1, expected)


def test_a_ray_client_address_is_refused(tmp_path: Path, write_experiment: Write, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("ray")
    write_experiment()
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    done = _train(tmp_path)
    assert done.exit_code == 1
    assert "RAY_ADDRESS must be the HOST:PORT that `ray start` said; got 'ray://head:10001'" in done.output


@pytest.mark.integration
def test_what_fails_is_tried_again_unless_the_user_must_mend_it(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    @cluster.remote(max_retries=0, max_calls=1)
    def fake(name: str) -> Iterator[str | Outcome]:
        tries = len(list(tmp_path.glob(f"{name}*")))
        (tmp_path / f"{name}{tries}").touch()
        yield "here"
        if name == "dies" and tries == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "raises":
            raise RuntimeError("no such luck\nat all")
        yield Outcome(["of the data"], ["mend a", "mend b"] if name == "mistaken" else [])

    monkeypatch.setattr(ray_executor, "RETRIES", 1)
    cluster.init(log_to_driver=False, logging_level="ERROR")
    try:
        failed = ray_executor._watch(cluster, fake.remote, ["good", "dies", "raises", "mistaken"])
    finally:
        cluster.shutdown()
    assert failed == {"raises": "RuntimeError: no such luck", "mistaken": "mend a; mend b"}
    tries = [sum(path.name.startswith(name) for path in tmp_path.iterdir()) for name in ("good", "dies", "raises")]
    assert tries == [1, 2, 2]
    assert len(list(tmp_path.glob("mistaken*"))) == 1
    said = capsys.readouterr().err
    assert said.count("of the data") == 1
    assert re.search(r"dies: WorkerCrashedError: .*; trying again \(1 of 1\)", said)
    assert "raises: RuntimeError: no such luck; trying again (1 of 1)\n" in said
    assert 'raise RuntimeError("no such luck' in said
    assert re.search(r"^mistaken: failed: mend a; mend b; [0-3] of 4 left$", said, re.MULTILINE)
    assert said.count("0 of 4 left") == 1


@pytest.mark.integration
def test_a_cluster_trains_orders_at_once_to_the_bits_of_a_local_run_though_a_worker_dies(
    cluster: Any, tmp_path: Path, write_experiment: Write
):
    experiment = write_experiment()
    arguments = ["train", str(tmp_path / "experiment.yml"), "--runs-dir", str(tmp_path / "runs"), "--executor", "ray"]
    command = [sys.executable, "-m", "ordermerge", *arguments]
    lines, killed = [], False
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            lines.append(line.strip())
            if (started := re.match(r"order_1: started on .* \(process (\d+)\)", line)) and not killed:
                os.kill(int(started.group(1)), signal.SIGKILL)
                killed = True
    assert process.returncode == 0, lines
    events = [line for line in lines if re.match(r"order_\d: (started|finished)", line)]
    kinds = [event.split(" on ")[0] for event in events]
    assert sorted(kinds[:2]) == ["order_0: started", "order_1: started"]
    assert kinds.count("order_1: started") == 2
    finished = [kind.split(": finished; ") for kind in kinds if "finished" in kind]
    assert [left for _, left in finished] == ["1 of 2 left", "0 of 2 left"]
    assert {name for name, _ in finished} == {"order_0", "order_1"}
    # What Ray calls the worker's death depends on how far its start was.
    assert any(re.match(r"order_1: \w+: .*trying again \(1 of \d\)", line) for line in lines), lines
    assert lines[-2:] == [str(tmp_path / "runs" / "tiny" / "orders" / str(k)) for k in range(2)]
    local = train_orders(experiment, tmp_path / "local")
    for directory in local:
        remote = tmp_path / "runs" / "tiny" / "orders" / directory.name
        for name in COMPARED:
            assert (remote / name).read_bytes() == (directory / name).read_bytes()
    assert [path for path in (tmp_path / "runs" / "tiny").rglob(".*")] == []


@pytest.mark.integration
def test_a_failing_order_is_named_and_the_others_are_trained(
    cluster: Any, tmp_path: Path, write_experiment: Write, monkeypatch: pytest.MonkeyPatch
):
    write_experiment()
    orders = tmp_path / "runs" / "tiny" / "orders"
    orders.mkdir(parents=True)
    (orders / ".1.lock").mkdir()  # where a file should be
    monkeypatch.setattr(ray_executor, "RETRIES", 0)
    done = _train(tmp_path)
    assert done.exit_code == 1
    assert re.search(
        r"Error: 1 of 2 orders failed: order_1 \(.*/\.1\.lock: cannot be written: .*\)\. The same command goes on",
        done.output,
    )
    (orders / ".1.lock").rmdir()
    assert sorted(os.listdir(orders)) == ["0"]
    again = _train(tmp_path)
    assert again.exit_code == 0, again.output
    assert "order_0: already trained" in again.output
    assert re.search(r"^training 1 of 2 orders on the Ray cluster at \S+:\d+ \(1 node", again.output, re.MULTILINE)
    assert sorted(os.listdir(orders)) == ["0", "1"]


@pytest.mark.integration
def test_a_request_larger_than_the_cluster_is_refused(cluster: Any, tmp_path: Path, write_experiment: Write):
    write_experiment()
    done = _train(tmp_path, "--cpus-per-order", "3")
    assert done.exit_code == 1
    assert "the 3 CPUs and 0 GPUs that an order asks for (nodes have 2 CPUs and 0 GPUs)" in done.output
    assert not (tmp_path / "runs" / "tiny" / "orders").exists()


@pytest.mark.integration
def test_a_cluster_trains_the_trunk_before_its_orders(
    cluster: Any, tmp_path: Path, write_experiment: Write, capsys: pytest.CaptureFixture[str]
):
    experiment = write_experiment(orders={"branch_at": 0.5})
    remote = ray_executor.train_on_ray(experiment, tmp_path / "remote")
    assert [folder.name for folder in remote] == ["0", "1"]
    said = capsys.readouterr().err
    assert said.index("trunk: finished; 0 of 1 left") < said.index("order_0: started on")
    assert not (tmp_path / "remote" / "orders" / "trunk" / "state").exists()
    for directory in train_orders(experiment, tmp_path / "local"):
        for name in COMPARED:
            assert (tmp_path / "remote" / "orders" / directory.name / name).read_bytes() == (
                directory / name
            ).read_bytes()
