"""`ordermerge noise` on runs, families of runs, and repeats that are no run."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from ordermerge.cli import main
from ordermerge.eval.comparison.noise import runs_per_arm, variance_components, wrong_sign_chance
from ordermerge.eval.statistics import mean_interval

Save = Callable[..., Path]


def noise(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["noise", *map(str, arguments)])


def found(*arguments: object) -> dict[str, Any]:
    done = noise(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def values(seed: int, runs: int = 3, documents: int = 50) -> np.ndarray:
    random = np.random.default_rng(seed)
    chances = random.uniform(0.2, 0.8, (documents, 1)) + 0.1 * random.standard_normal(runs)
    return (random.random((documents, runs)) < chances).astype(float)


def make_run(
    save: Save, folder: Path, orders: np.ndarray, merges: dict[str, list[float]], rates: tuple[float, ...] = ()
) -> Path:
    content = {
        "name": folder.name,
        "model": {"path": "org/base"},
        "data": {"train": "org/data", "prompt": "{q}", "completion": "{a}"},
        "orders": {"count": orders.shape[1] // (len(rates) or 1)},
        "merges": {name: {"merge_method": "linear", "parameters": {"weight": 1}} for name in merges},
        "vary": {"learning_rate": list(rates)} if rates else {},
    }
    folder.mkdir()
    (folder / "experiment.yml").write_text(yaml.safe_dump(content))
    models = {"base": [0.0] * len(orders), **{f"order_{k}": orders[:, k].tolist() for k in range(orders.shape[1])}}
    for name, scores in {**models, **merges}.items():
        place = folder / "eval" / name
        save(place, scores)
        for file in (place / "org__model").iterdir():  # `run` writes into the model's folder itself
            file.rename(place / file.name)
        (place / "org__model").rmdir()
    return folder


def test_each_value_of_a_varied_field_is_a_family(save: Save, tmp_path: Path) -> None:
    table = values(1, runs=4)
    run = make_run(save, tmp_path / "run", table, {"mean": [1.0] * 50}, rates=(0.001, 0.0005))
    report = found(run)
    (noise,) = report["noise"]
    assert noise["families"] == {
        f"{run} learning_rate=0.001": [f"{run}/order_0", f"{run}/order_1"],
        f"{run} learning_rate=0.0005": [f"{run}/order_2", f"{run}/order_3"],
    }
    assert report["gains"] == []


def test_a_run_gives_the_components_of_its_orders(save: Save, tmp_path: Path) -> None:
    table = values(0)
    run = make_run(save, tmp_path / "run", table, {"mean": [1.0] * 50})
    report = found(run, "--difference", 0.05)
    (one,) = report["noise"]
    expected = variance_components([table], [50], [1.0])
    assert one["families"] == {str(run): [f"{run}/order_{k}" for k in range(3)]}
    assert one["spread"] == pytest.approx(table.mean(axis=0).std(ddof=1))
    assert one["order_sigma"] == pytest.approx(math.sqrt(expected.orders))
    assert (one["order_low"], one["order_high"]) == pytest.approx(
        (math.sqrt(expected.orders_low), math.sqrt(expected.orders_high))
    )
    assert one["removable"] == pytest.approx(min(1, expected.noise / expected.total))
    (power,) = one["power"]
    ends = one["order_low"], one["order_high"]
    assert power["wrong_sign_interval"] == pytest.approx([wrong_sign_chance(0.05, sigma) for sigma in ends])
    assert power["runs_interval"] == pytest.approx([runs_per_arm(0.05, sigma) for sigma in ends])
    assert power["difference"] == 0.05
    assert report["gains"] == []
    (sigmas,) = found(run)["noise"]
    assert [round(power["wrong_sign"], 3) for power in sigmas["power"]][:3] == [0.444, 0.389, 0.336]
    assert math.ceil(sigmas["power"][3]["runs"]) == 16  # a difference of one sigma


def test_runs_are_families_and_their_merges_have_an_interval_over_orders(save: Save, tmp_path: Path) -> None:
    tables = [values(seed) for seed in (1, 2, 3)]
    merged = [[1.0] * right + [0.0] * (50 - right) for right in (30, 34, 35)]
    runs = [make_run(save, tmp_path / f"r{i}", tables[i], {"mean": merged[i]}) for i in range(3)]
    report = found(*runs)
    assert report["noise"][0]["order_sigma"] == pytest.approx(
        math.sqrt(variance_components(tables, [50], [1.0]).orders)
    )
    (gain,) = report["gains"]
    expected = [np.mean(merged[i]) - tables[i].mean() for i in range(3)]
    assert list(gain["gains"].values()) == pytest.approx(expected)
    assert (gain["mean"], gain["low"], gain["high"]) == pytest.approx(mean_interval(expected))
    assert gain["merge"] == "mean"
    assert "Merged model less the mean of its single ones, over families of orders" in noise(*runs).output


def test_other_folders_are_repeats_of_one_another(save: Save, tmp_path: Path) -> None:
    table = values(4)
    folders = [save(tmp_path / str(k), table[:, k].tolist()) for k in range(3)]
    (one,) = found(*folders)["noise"]
    assert one["families"] == {"repeats": [str(folder) for folder in folders]}
    assert one["item_sigma"] == pytest.approx(math.sqrt(variance_components([table], [50], [1.0]).noise))
    file = tmp_path / "noise.json"
    assert noise(*folders, "--json", file).exit_code == 0
    assert json.loads(file.read_text())["noise"] == [one]


def test_what_cannot_be_analysed_is_said(save: Save, tmp_path: Path) -> None:
    a = save(tmp_path / "a", [1.0, 0.0])
    assert noise(a).output == "Error: repeats: order noise takes at least 2 repeated runs; got 1\n"
    b = save(tmp_path / "b", [1.0, 0.0], prompt="other")
    assert "were scored with different prompts of t" in noise(a, b).output
    assert noise(a, b, "--difference", 0).exit_code == 2
    c, d = save(tmp_path / "c", [1.0]), save(tmp_path / "d", [0.0])
    assert found(c, d)["left_out"][0]["reason"] == "it has a single document"
