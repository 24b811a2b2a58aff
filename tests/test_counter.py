"""The counter generator against its definition, in plain integers."""

import math

import pytest
import torch

from ordermerge.counter import random_words, stream_key

MASK = (1 << 64) - 1


def splitmix64(key: int, index: int) -> int:
    z = (key + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


@pytest.mark.parametrize("key", [0, 1, MASK, 0x0123456789ABCDEF, stream_key(0, "x")])
@pytest.mark.parametrize("start", [0, 1, 10**12])
def test_words_are_splitmix64(key: int, start: int) -> None:
    words = random_words(key, start, 9)
    assert words.dtype == torch.int64
    assert [word & MASK for word in words.tolist()] == [splitmix64(key, start + i) for i in range(9)]


def test_first_words_of_the_published_generator() -> None:
    """The reference program seeded with 1234567 prints these (Vigna, splitmix64.c; widely republished)."""
    assert random_words(1234567, 0, 3).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423 - 2**64,
    ]


def test_keys_tell_every_part_apart() -> None:
    keys = [
        stream_key(*parts) for parts in [(0, "a", 0), (0, "a", 1), (1, "a", 0), (0, "b", 0), ("0", "a", 0), (0, "a")]
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key <= MASK for key in keys)


def test_golden_key() -> None:
    """Keys name draws that published recipes rely on: they must not change."""
    assert stream_key(0, "model.embed_tokens.weight", 0) == 13198027620989318793


def test_every_bit_is_fair() -> None:
    words = random_words(stream_key("bits"), 0, 100_000)
    for bit in range(64):
        share = ((words >> bit) & 1).double().mean().item()
        assert abs(share - 0.5) <= 5 * 0.5 / math.sqrt(100_000), f"bit {bit}"
