"""Order-varied fine-tuning and parameter-selection merging for Hugging Face language models.

The installed package is also loaded inside a half-imported torch (see `_autoload`), so this module imports only
the standard library, and nothing at all that is not needed for `__version__`.
"""

__version__ = "0.1.0"
