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
    words = counters(count, device=device)
    return mix_words(words, key, start, out=words, scratch=torch.empty_like(words))


def counters(count: int, *, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return what `mix_words` makes words of; one result serves for any stream and any part of it.

    Args:
        count: How many words are to be made at once.
        device: Where to make them.

    Returns:
        int64 tensor of shape [count].
    """
    return torch.arange(1, count + 1, dtype=torch.int64, device=device).mul_(_signed(_GAMMA))


def mix_words(
    counters: torch.Tensor, key: int, start: int, *, out: torch.Tensor, scratch: torch.Tensor
) -> torch.Tensor:
    """Write words `start` onwards of a stream to `out`, without allocating anything.

    Args:
        counters: The result of `counters`, int64 of shape [count].
        key: The stream (see `stream_key`).
        start: Index of the first word.
        out: int64 of shape [count]; may be `counters` itself.
        scratch: int64 of shape [count], overwritten.

    Returns:
        `out`.
    """
    torch.add(counters, _signed(key + start * _GAMMA), out=out)
    for shift, factor in ((30, _MIX_1), (27, _MIX_2), (31, None)):
        # torch shifts int64 arithmetically: the mask clears the copies of the sign bit.
        torch.bitwise_right_shift(out, shift, out=scratch)
        out ^= scratch.bitwise_and_((1 << (64 - shift)) - 1)
        if factor is not None:
            out *= _signed(factor)
    return out


def _signed(value: int) -> int:
    """Return the int64 that has the bits of a 64-bit unsigned value."""
    value %= _WORD
    return value - _WORD if value >= _WORD >> 1 else value
