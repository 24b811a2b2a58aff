"""mergekit merge methods; importing this package registers them with mergekit.

`METHODS` is the one place where a method is wired in.
"""

from mergekit.merge_methods import registry

from ordermerge.merge_methods.parameter_selection import (
    parameter_selection,
    parameter_selection_merge,
    parameter_selection_resample_merge,
)
from ordermerge.merge_methods.parameters import Granularity

METHODS = (parameter_selection_merge, parameter_selection_resample_merge)


def register_methods() -> None:
    """Make `METHODS` known to mergekit by name; doing it twice is harmless."""
    known = {method.spec.name for method in registry.registered_methods()}
    for method in METHODS:
        if method.spec.name not in known:
            registry.register(method)


register_methods()

__all__ = ["METHODS", "Granularity", "parameter_selection", "register_methods"]
