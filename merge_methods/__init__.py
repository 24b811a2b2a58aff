"""mergekit merge methods; importing this package registers them with mergekit.

`METHODS` is the one place where a method is wired in.
"""

from mergekit.merge_methods import registry

from ordermerge.merge_methods.graft import GRAFT_PASS, graft, graft_merge, graft_thresholds
from ordermerge.merge_methods.half_reset import half_reset, half_reset_merge
from ordermerge.merge_methods.parameter_selection import (
    parameter_selection,
    parameter_selection_merge,
    parameter_selection_resample_merge,
)
from ordermerge.merge_methods.parameters import Granularity
from ordermerge.merge_methods.pcb import PCB_PASS, Limits, pcb, pcb_limits, pcb_merge

METHODS = (
    parameter_selection_merge,
    parameter_selection_resample_merge,
    half_reset_merge,
    graft_merge,
    pcb_merge,
)
# By name, the methods that must know of the whole model before they merge the first tensor.
FIRST_PASSES = {"graft": GRAFT_PASS, "pcb": PCB_PASS}


def register_methods() -> None:
    """Make `METHODS` known to mergekit by name; doing it twice is harmless."""
    known = {method.spec.name for method in registry.registered_methods()}
    for method in METHODS:
        if method.spec.name not in known:
            registry.register(method)


register_methods()

__all__ = [
    "FIRST_PASSES",
    "METHODS",
    "Granularity",
    "Limits",
    "graft",
    "graft_thresholds",
    "half_reset",
    "parameter_selection",
    "pcb",
    "pcb_limits",
    "register_methods",
]
