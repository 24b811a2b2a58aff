"""FSDP needs GPUs. Checked here: its configuration, and how weights that it has gathered are saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from ordermerge.config.schema import Experiment
from ordermerge.train.sft import train_orders
from ordermerge.train.trainer import OrderTrainer

CONFIGURATION = Path(__file__).parents[2] / "recipes" / "accelerate" / "fsdp.yaml"


def test_accelerate_makes_the_plugin_that_the_configuration_asks_for(monkeypatch: pytest.MonkeyPatch):
    given = ["--config_file", str(CONFIGURATION), "-m", "ordermerge", "train", "experiment.yml"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(given))
    assert (arguments.use_fsdp, arguments.num_processes) == (True, 4)
    for name, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.cpu_ram_efficient_loading) == (2, True, False)
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=32))
    plugin.set_auto_wrap_policy(model)
    assert plugin.auto_wrap_policy is not None


def test_gathered_weights_are_saved_in_the_dtype_that_the_experiment_says(
    tmp_path: Path, write_experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
):
    experiment = write_experiment(model={"dtype": "bfloat16"})
    (plain,) = train_orders(experiment, tmp_path / "plain", only=0)
    train = OrderTrainer.train

    def train_as_if_sharded(self: OrderTrainer, *args: Any, **named: Any) -> Any:
        result = train(self, *args, **named)
        gathered = {name: value.float() for name, value in self.model.state_dict().items()}  # FSDP 2 trains float32
        monkeypatch.setattr(self, "is_fsdp_enabled", True)
        monkeypatch.setattr(self, "save_model", None)  # would save nothing
        monkeypatch.setattr(self.accelerator, "get_state_dict", lambda model: gathered)
        return result

    monkeypatch.setattr(OrderTrainer, "train", train_as_if_sharded)
    (gathered,) = train_orders(experiment, tmp_path / "gathered", only=0)
    expected, saved = load_file(plain / "model.safetensors"), load_file(gathered / "model.safetensors")
    assert saved.keys() == expected.keys()
    assert all(saved[name].dtype == torch.bfloat16 and torch.equal(saved[name], expected[name]) for name in saved)
    assert sorted(path.name for path in gathered.iterdir()) == sorted(path.name for path in plain.iterdir())
