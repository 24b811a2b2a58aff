"""Orders, and supervised fine-tuning in them: the same data, model and steps K times, only the order differs.

Names are imported when first used: `import ordermerge.train` itself loads neither torch nor TRL.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ordermerge.train.data import Samples, load_samples
    from ordermerge.train.executors import Resources, train_on_ray
    from ordermerge.train.given import check_orders
    from ordermerge.train.lora import check_lora
    from ordermerge.train.orders import (
        STRATEGIES,
        batch_orders,
        check_distinct,
        epoch_fingerprints,
        random_orders,
        rotate_orders,
    )
    from ordermerge.train.preview import preview_orders
    from ordermerge.train.settings import check_sft
    from ordermerge.train.sft import check_training, order_steps, train_orders
    from ordermerge.train.sources import check_data, data_file

_HOMES = {
    "Resources": "executors",
    "STRATEGIES": "orders",
    "Samples": "data",
    "batch_orders": "orders",
    "check_data": "sources",
    "check_distinct": "orders",
    "check_lora": "lora",
    "check_orders": "given",
    "check_sft": "settings",
    "check_training": "sft",
    "data_file": "sources",
    "epoch_fingerprints": "orders",
    "load_samples": "data",
    "order_steps": "sft",
    "preview_orders": "preview",
    "random_orders": "orders",
    "rotate_orders": "orders",
    "train_on_ray": "executors",
    "train_orders": "sft",
}

__all__ = [
    "STRATEGIES",
    "Resources",
    "Samples",
    "batch_orders",
    "check_data",
    "check_distinct",
    "check_lora",
    "check_orders",
    "check_sft",
    "check_training",
    "data_file",
    "epoch_fingerprints",
    "load_samples",
    "order_steps",
    "preview_orders",
    "random_orders",
    "rotate_orders",
    "train_on_ray",
    "train_orders",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
