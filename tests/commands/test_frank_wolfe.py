"""FW-Merging: the worked example, and a run's sub-models merged through the command."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from ordermerge.cli import main
from ordermerge.commands.frank_wolfe import choose, share_of_step


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_worked_example() -> None:
    # f = .5 |m - (.6, .5)|^2, changes (1, 0) and (0, 2), scale .3: computed by hand.
    updates = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])]
    merged, goal, picks = 0.3 * sum(updates), torch.tensor([0.6, 0.5]), []
    path = [merged]
    for step in range(3):
        pick = choose(merged - goal, updates)
        assert pick is not None
        picks.append(pick)
        merged = torch.lerp(merged, updates[pick], share_of_step(step, 0.3, 1.0))
        path.append(merged)
    assert picks == [0, 0, 1]
    expected = torch.tensor([[0.3, 0.6], [0.51, 0.42], [0.608, 0.336], [0.5168, 0.5856]])
    torch.testing.assert_close(torch.stack(path), expected)


def test_nothing_is_chosen_where_no_change_lowers_the_loss() -> None:
    assert choose(torch.tensor([1.0, 1.0]), [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])]) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run directory of two orders, with validation data."""
    folder = tmp_path_factory.mktemp("start")
    assert invoke("init", str(folder)).exit_code == 0
    changed = yaml.safe_load((folder / "experiment.yml").read_text())
    changed |= {"name": "tiny", "orders": {"count": 2}}
    changed = {key: value for key, value in changed.items() if key not in ("controls", "evaluation", "merges")}
    (folder / "experiment.yml").write_text(yaml.safe_dump(changed))
    done = invoke("train", str(folder / "experiment.yml"), "--runs-dir", str(folder / "runs"))
    assert done.exit_code == 0, done.output
    return folder / "runs" / "tiny"


def test_steps_lower_the_loss_and_go_on_to_the_same_bits(run: Path) -> None:
    whole = invoke("frank-wolfe", str(run), "--steps", "3", "--scale", "0.5")
    assert whole.exit_code == 0, whole.output
    noted = json.loads((run / "frank_wolfe.json").read_text())["steps"]
    assert len(noted) == 3
    assert noted[2]["loss"] < noted[0]["loss"]
    assert set(noted[0]["picks"]) == set(load_file(run / "orders" / "0" / "model.safetensors"))
    weights = (run / "frank_wolfe" / "model.safetensors").read_bytes()
    shutil.rmtree(run / "frank_wolfe")
    (run / "frank_wolfe.json").unlink()
    assert invoke("frank-wolfe", str(run), "--steps", "1", "--scale", "0.5").exit_code == 0
    again = invoke("frank-wolfe", str(run), "--steps", "3", "--scale", "0.5")
    assert "step 1 of 3" not in again.output
    assert "step 2 of 3" in again.output
    assert (run / "frank_wolfe" / "model.safetensors").read_bytes() == weights


def test_no_step_is_the_scaled_sum_of_the_changes(run: Path) -> None:
    assert invoke("frank-wolfe", str(run), "--steps", "0", "--scale", "0.5").exit_code == 0
    base = load_file(run.parents[1] / "base" / "model.safetensors")
    first, second = (load_file(run / "orders" / k / "model.safetensors") for k in "01")
    for name, merged in load_file(run / "frank_wolfe" / "model.safetensors").items():
        expected = base[name] + 0.5 * ((first[name] - base[name]) + (second[name] - base[name]))
        torch.testing.assert_close(merged, expected)


@pytest.mark.parametrize(("option", "value"), [("--scale", "0"), ("--step-size", "2")])
def test_absurd_sizes_are_refused(run: Path, option: str, value: str) -> None:
    refused = invoke("frank-wolfe", str(run), option, value)
    assert refused.exit_code == 1
    assert "must be above 0, at most 1" in refused.output
