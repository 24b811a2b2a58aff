"""What compiled loops over lanes have in common: how Numba compiles them, the draws, and "changed".

Numba keeps compiled code for as long as the file of the called loop is the same: who changes a function here changes
the files of the loops that call it too (`compiled.py` in `merge_methods` and in `eval/inspect`).
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic

DRAWS_PER_WORD = 4
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

# Where Numba keeps compiled code: what NUMBA_CACHE_DIR names, or the user's cache. Not beside the code, which comes
# first otherwise: pip leaves such a folder in site-packages, where it hides a later editable install of the package.
_PLACES = "UserProvidedCacheLocator,UserWideCacheLocator"

part = numba.njit(nogil=True)


def loop(function: Callable[..., Any]) -> Any:
    """Compile at the first call; where Numba finds a folder to keep the result in, only once per machine."""
    config: Any = numba.config
    given = getattr(config, "CACHE_LOCATOR_CLASSES", "")
    config.CACHE_LOCATOR_CLASSES = given or _PLACES
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)
    finally:
        config.CACHE_LOCATOR_CLASSES = given


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@part
def lanes_at(address: int, like: np.ndarray, first: int, last: int) -> np.ndarray:
    """Return lanes `first` to `last` of a model: by addresses, a loop is compiled once for any number of models."""
    return numba.carray(_pointer(address), like.shape, like.dtype)[first:last]  # type: ignore[call-arg]


@part
def changed(lanes: np.ndarray, base: np.ndarray, i: int, zeros: bool) -> bool:
    """Return whether value i differs from the base model's, as `ordermerge.unchanged.changed` does.

    Args:
        lanes: A model's lanes.
        base: The base model's.
        i: Index.
        zeros: What `has_zero` says of the base's: most pieces of weights hold none, and bits alone are compared faster.
    """
    if zeros:
        minus_zero = base.dtype.type(-1 << (8 * base.itemsize - 1))
        return (lanes[i] != base[i]) & ((lanes[i] | base[i]) != minus_zero)
    return lanes[i] != base[i]


@part
def has_zero(lanes: np.ndarray) -> bool:
    """Return whether a value is 0.0 or -0.0: whether the smallest is, without its sign."""
    largest = lanes.dtype.type(~(-1 << (8 * lanes.itemsize - 1)))
    smallest = largest
    for i in range(len(lanes)):
        smallest = min(smallest, lanes.dtype.type(lanes[i] & largest))
    return smallest == 0


@part
def write_draws(words: np.ndarray, key: int, first: int) -> None:
    """Write the words that hold the draws of values `first` onwards (see `ordermerge.counter`)."""
    count = np.uint64(first // DRAWS_PER_WORD + 1)
    for i in range(len(words)):
        word = key + (count + np.uint64(i)) * _GAMMA
        word = (word ^ (word >> np.uint64(30))) * _MIX_1
        word = (word ^ (word >> np.uint64(27))) * _MIX_2
        words[i] = word ^ (word >> np.uint64(31))
