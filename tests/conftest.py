"""What all tests share: tiny real checkpoints, and the versions that a failure must be read with."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch
import transformers
from tiny import CONFIGS, make_tokenizer

import ordermerge
from ordermerge import compiled

ROOT = Path(__file__).resolve().parents[1]


def pytest_sessionstart() -> None:
    """Refuse to test another package than the checkout's: an old wheel passes tests of code that is broken."""
    installed = Path(ordermerge.__path__[0])  # of a folder that pip left behind there is no `__file__`
    folders = (ROOT / name for name in ("src/ordermerge", "merge_methods", "train", "eval"))
    differing = [path for folder in folders for path in folder.rglob("*.py") if not _is_installed(path, installed)]
    if differing:
        pytest.exit(
            f"the package under test, {installed}, is not this checkout: {differing[0].relative_to(ROOT)} differs; "
            "install it with `pip install -e '.[dev]'`, or run `make test`",
            returncode=3,
        )


def _is_installed(path: Path, installed: Path) -> bool:
    """Return whether a file of the checkout is the one that is imported (an editable install), or equal to it."""
    below = path.relative_to(ROOT)
    if below.parts[0] == "src":
        twin = installed.joinpath(*below.parts[2:])
    else:
        wing = importlib.util.find_spec(f"ordermerge.{below.parts[0]}")
        twin = Path(str(wing and wing.origin)).parent.joinpath(*below.parts[1:])
    return twin == path or (twin.is_file() and twin.read_bytes() == path.read_bytes())


def pytest_report_header() -> str:
    names = ("ordermerge", "mergekit", "torch", "transformers", "trl", "lm_eval", "numba")
    return "versions: " + ", ".join(f"{name} {metadata.version(name)}" for name in names)


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an idle machine, so that no command warns of other work on it."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))


@pytest.fixture(scope="session")
def make_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Path]]:
    """Return a function that writes a base model and K sub-models of it, half of whose values are unchanged."""

    def family(kind: str = "llama", count: int = 3, dtype: torch.dtype = torch.bfloat16) -> list[Path]:
        root = tmp_path_factory.mktemp(kind)
        generator = torch.Generator().manual_seed(7)
        torch.manual_seed(7)
        config = CONFIGS[kind]()
        config.dtype = dtype
        base = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
        for name in ["base", *(f"sub{k}" for k in range(count))]:
            model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
            model.load_state_dict(base.state_dict())
            with torch.no_grad():
                for parameter in model.parameters():
                    change = torch.rand(parameter.shape, generator=generator) < (0.5 if name != "base" else 0)
                    parameter[change] += torch.randn(int(change.sum()), generator=generator).to(dtype)
            model.save_pretrained(root / name)
            make_tokenizer().save_pretrained(root / name)
        return [root / name for name in ["base", *(f"sub{k}" for k in range(count))]]

    return family


@pytest.fixture(scope="session")
def family(make_family: Callable[..., list[Path]]) -> list[Path]:
    """A base model and two sub-models, never written to."""
    return make_family("llama", count=2, dtype=torch.float32)


@pytest.fixture(scope="module", params=["torch", "loops"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways of computing: each test that asks for it runs by plain torch and by the compiled loops."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "_failures", [ImportError()] if request.param == "torch" else [])
        yield request.param
        assert len(compiled._failures) == (request.param == "torch")
