"""The stock mergekit knows our methods as soon as ordermerge is installed: tested from outside, in new processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ordermerge.merge_methods import METHODS, register_methods

NAMES = {"parameter_selection", "parameter_selection_resample"}
KNOWN = "from mergekit.merge_methods import registered_methods as r; print(*sorted(m.spec.name for m in r()))"
OFF = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


def run(code: str, cwd: Path, env: dict[str, str] | None = None, flags: list[str] | None = None) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, *(flags or []), "-c", code],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    "first",
    [
        "import torch",
        "import mergekit.merge_methods.registry",
        "import mergekit.scripts.run_yaml",
        "import ordermerge.merge_methods",
        "import ordermerge",
    ],
)
def test_any_import_order_registers_once(first: str, tmp_path: Path) -> None:
    out, err = run(f"{first}\n{KNOWN}", tmp_path)
    assert sorted(set(out.split()) & NAMES) == sorted(word for word in out.split() if word in NAMES) == sorted(NAMES)
    assert "not available" not in err


def test_autoload_off_leaves_mergekit_as_it_was(tmp_path: Path) -> None:
    out, _ = run(KNOWN, tmp_path, OFF)
    assert "linear" in out.split()
    assert not NAMES & set(out.split())


def test_autoload_off_explicit_import_registers(tmp_path: Path) -> None:
    out, _ = run(f"import ordermerge.merge_methods\n{KNOWN}", tmp_path, OFF)
    assert set(out.split()) >= NAMES


def test_late_install_registers_at_once(tmp_path: Path) -> None:
    late = "import mergekit.merge_methods\nfrom ordermerge._autoload import install\ninstall()\ninstall()\n"
    out, _ = run(late + KNOWN, tmp_path, OFF)
    assert set(out.split()) >= NAMES


def test_autoload_imports_only_the_standard_library(tmp_path: Path) -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "import ordermerge._autoload\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*(new - set(sys.stdlib_module_names)))"
    )
    out, _ = run(code, tmp_path)
    assert out.split() == ["ordermerge"]


@pytest.mark.parametrize("flags", [[], ["-W", "error"]])
def test_a_failure_of_ours_never_breaks_torch_or_mergekit(tmp_path: Path, flags: list[str]) -> None:
    broken = "import sys; sys.modules['ordermerge.merge_methods'] = None\n"
    importing = "import warnings\nwith warnings.catch_warnings():\n  warnings.simplefilter('ignore')\n  import torch\n"
    out, err = run(broken + importing + KNOWN, tmp_path, flags=[*flags, "-W", "ignore::DeprecationWarning"])
    assert "linear" in out.split()
    assert not NAMES & set(out.split())
    assert bool(flags) != ("ordermerge's merge methods are not available to mergekit" in err)


def test_checkout_root_imports_torch(tmp_path: Path) -> None:
    """No folder of the checkout may shadow the installed package, or `import torch` breaks there."""
    root = next((p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").exists()), tmp_path)
    assert not (root / "ordermerge").exists()
    out, _ = run("import torch\n" + KNOWN, root)
    assert set(out.split()) >= NAMES


def test_registering_twice_is_harmless() -> None:
    register_methods()
    register_methods()


def test_methods_have_unique_names_and_ours_name_the_paper() -> None:
    by_name = {method.spec.name: method for method in METHODS}
    assert len(by_name) == len(METHODS)
    assert by_name.keys() >= NAMES
    assert {by_name[name].spec.reference_url for name in NAMES} == {"https://arxiv.org/abs/2410.03743"}
    assert all(method.spec.pretty_name for method in METHODS)
