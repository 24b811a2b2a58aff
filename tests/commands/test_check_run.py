import os
from pathlib import Path

from click.testing import CliRunner

from ordermerge.cli import main
from ordermerge.files import file_records, write_json


def test_a_run_whose_file_was_changed_fails_the_check(tmp_path: Path) -> None:
    (tmp_path / "experiment.yml").write_text(
        "{name: x, model: {path: org/model}, orders: {count: 2}, "
        "data: {train: org/data, prompt: '{q}', completion: '{a}'}}"
    )
    order, old = (tmp_path / "orders" / name for name in "01")
    order.mkdir(parents=True)
    weights = order / "model.safetensors"
    weights.write_bytes(b"one")
    write_json(order / "order" / "order.json", {"files": file_records(order)})
    write_json(old / "order" / "order.json", {})

    def check(*options: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["check", str(tmp_path), *options])
        return done.exit_code, done.output

    status, said = check("--deep")
    assert status == 0, said
    assert f"warning: {old / 'order' / 'order.json'}: holds no digests" in said
    assert "all other files are what they were when made" in said
    before = weights.stat()
    weights.write_bytes(b"onf")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert check()[0] == 0
    status, said = check("--deep")
    assert status == 1
    assert f"Error: {weights}: is not what it was when it was made (its SHA-256 is another)" in said
