"""Makes the stock `mergekit-yaml` know ordermerge's merge methods as soon as ordermerge is installed.

mergekit 0.1.5 has no plugin discovery, but it imports torch, and `import torch` ends by loading the entry points of
the group `torch.backends`; ours is `install`. It runs inside a half-imported torch, so this module imports only the
standard library and never raises: an exception here would break `import torch` for the whole environment.
`TORCH_DEVICE_BACKEND_AUTOLOAD=0` switches all such entry points off; `ordermerge merge` needs none of this.
"""

import contextlib
import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

REGISTRY = "mergekit.merge_methods.registry"


def install() -> None:
    """Arrange for the methods to be registered right after mergekit's registry is imported, or now if it already is."""
    if REGISTRY in sys.modules:
        _register()
    elif not any(isinstance(finder, _RegistryFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegistryFinder())


class _RegistryFinder(MetaPathFinder):
    """Finds mergekit's registry where it always is, and registers our methods once it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != REGISTRY:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_then_register(module: ModuleType) -> None:
            run(module)
            _register()

        with contextlib.suppress(AttributeError):  # a loader that takes no attributes is left as it is
            spec.loader.exec_module = run_then_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    try:
        # Registers as it is imported. When it is itself being imported it goes on and registers at its end.
        importlib.import_module("ordermerge.merge_methods")
    except Exception as error:
        with contextlib.suppress(Warning):  # under `-W error` a warning would be raised into somebody else's import
            warnings.warn(
                f"ordermerge's merge methods are not available to mergekit: {error!r}", RuntimeWarning, stacklevel=2
            )
