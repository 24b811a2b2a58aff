"""Counter-based random words: the same word for the same (key, index), on any machine, in any order.

SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): word i is `mix(key + (i + 1) * GAMMA)`. Library generators are no
alternative here: their streams change between releases and depend on how the work is cut into pieces.
"""

import hashlib

import torch

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_WORD = 1 << 64


def stream_key(*parts: int | str) -> int:
    """Return the 64-bit key of the stream that these parts name; other parts give an unrelated stream.

    Args:
        parts: Integers and strings; their number, types and values all count.
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def random_words(key: int, start: int, count: int, *, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return words `start` to `start + count - 1` of a stream.

    Args:
        key: The stream (see `stream_key`).
        start: Index of the first word.
        count: How many words.
        device: Where to make them; the values are the same everywhere.

    Returns:
        int64 tensor of shape [count], each of the 2^64 values equally likely.
    """
    words = torch.arange(1, count + 1, dtype=torch.int64, device=device).mul_(_signed(_GAMMA))
    words += _signed(key + start * _GAMMA)
    for shift, factor in ((30, _MIX_1), (27, _MIX_2), (31, 1)):
        # torch shifts int64 arithmetically: the mask clears the copies of the sign bit.
        words ^= (words >> shift) & ((1 << (64 - shift)) - 1)
        words *= _signed(factor)
    return words


def _signed(value: int) -> int:
    """Return the int64 that has the bits of a 64-bit unsigned value."""
    value %= _WORD
    return value - _WORD if value >= _WORD >> 1 else value
