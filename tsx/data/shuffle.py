"""Keyed mixing of 64-bit integers, and a permutation of any size that needs no memory.

The permutation is a Feistel network over pairs (left, right) with left < A, right < B and
A * B barely above the size; what falls beyond the size is sent through again until it does not
("cycle walking"), which keeps it a bijection. Not cryptography: it only has to shuffle.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

from tsx.data.meta import Ints

Words = npt.NDArray[np.uint64]

_ROUNDS = 4  # pairs of half rounds; three are the least that look random (Luby and Rackoff, 1988)


def mix(words: Words) -> Words:
    """Scramble each 64-bit word; a bijection.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood, 2014).
    """
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def hash_name(name: str) -> int:
    """Return 64 bits of the SHA-256 of a name: the same on every machine and in every process."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")


def permute(position: Ints, epoch: Ints, *, size: int, seed: int) -> Ints:
    """Return where each position stands in its epoch's order.

    For one epoch and seed this is a bijection of 0 .. size - 1.

    Args:
        position: 0 <= position < size.
        epoch: as long as `position`; each epoch has an order of its own.
        size: how many there are.
        seed: 0 <= seed < 2**64.
    """
    key = mix(mix(np.full(1, seed, np.uint64)) + epoch.astype(np.uint64))
    width = math.isqrt(size - 1) + 1  # of the left half: the square root, rounded up
    words = _scramble(position.astype(np.uint64), key, width, -(-size // width))
    while len(beyond := np.flatnonzero(words >= np.uint64(size))):
        words[beyond] = _scramble(words[beyond], key[beyond], width, -(-size // width))
    return words.astype(np.int64)


def _scramble(words: Words, key: Words, left_size: int, right_size: int) -> Words:
    """One pass of the network over 0 .. left_size * right_size - 1."""
    width, height = np.uint64(left_size), np.uint64(right_size)
    left, right = words // height, words % height
    for index in range(_ROUNDS):
        round_key = mix(key + np.uint64(index))
        # The term is reduced before it is added: a sum that wraps at 2**64 would be no bijection.
        right = (right + mix(left ^ round_key) % height) % height
        left = (left + mix(right + round_key) % width) % width
    result: Words = left * height + right
    return result
