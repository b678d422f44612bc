"""Counter-based random numbers: the same on CPU, CUDA, every rank and every worker.

Every draw is a pure function of (seed, purpose, global env id, steps that env has lived, slot), so there is no generator
state to save, to share or to capture.  The generator is Philox2x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011), written in int64 tensor operations; the known-answer vectors of Random123 are its test.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIER = 0xD256D193  # PHILOX_M2x32_0
_WEYL = 0x9E3779B9  # PHILOX_W32_0
_ROUNDS = 10


def philox2x32(counter_0: Tensor, counter_1: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Two random 32-bit words for each counter.

    Args:
        counter_0: int64, in [0, 2^32), any shape that broadcasts with the others.
        counter_1: int64, likewise.
        key: int64, likewise.

    Returns:
        Two int64 tensors of the broadcast shape, values in [0, 2^32).
    """
    left, right = counter_0, counter_1
    for round_ in range(_ROUNDS):
        # The 64-bit product wraps as a signed integer; its two halves are read as unsigned ones.  Only `left` is multiplied, so
        # that it alone needs its upper half cleared in every round.
        product = left * _MULTIPLIER
        left, right = ((product >> 32) ^ (key + round_ * _WEYL) ^ right) & _MASK, product
    return left, right & _MASK


def stream_key(seed: int, purpose: str, device: torch.device | str = "cpu") -> Tensor:
    """Make a 32-bit key, int64 (), for one use of randomness ("step", "policy", "startup") under one seed."""
    return torch.tensor(zlib.crc32(f"{seed}:{purpose}".encode()), device=device)


def uniform(key: Tensor, env_ids: Tensor, step: Tensor | int, size: int) -> Tensor:
    """Uniform numbers in [0, 1) with 24 bits each.

    Args:
        key: the stream, of `stream_key`.
        env_ids: global env ids, int64, (N,).
        step: how many steps each env has lived, int64, (N,), or one for all.
        size: how many numbers each env gets, K; another size gives other numbers, not more of the same.

    Returns:
        float32, (N, K).
    """
    words = _words(key, env_ids, step, (size + 1) // 2)
    return (torch.cat(words, dim=1)[:, :size] >> 8).float() * 2.0**-24


def normal(key: Tensor, env_ids: Tensor, step: Tensor | int, size: int) -> Tensor:
    """Draw standard normal numbers by Box and Muller's transform; arguments and shape as `uniform`'s."""
    first, second = _words(key, env_ids, step, (size + 1) // 2)
    # (0, 1]: the logarithm's argument is never 0
    radius = torch.sqrt(-2.0 * torch.log(((first >> 8) + 1).float() * 2.0**-24))
    angle = (second >> 8).float() * (2.0 * math.pi * 2.0**-24)
    return torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)[:, :size]


def _words(key: Tensor, env_ids: Tensor, step: Tensor | int, pairs: int) -> tuple[Tensor, Tensor]:
    # The key is a tensor: as a Python constant, torch 2.13's inductor miscompiles this function on the CPU.
    # Two levels, because one 64-bit counter cannot hold env, step and slot: the first turns (env, step) into a key and an
    # offset of 32 bits each, the second counts the slots under them.
    row_key, row_offset = philox2x32(env_ids, torch.zeros_like(env_ids) + step, key.expand_as(env_ids))
    # `| 0`, because inductor reckons with the numbers of an arange as it does with indices, in 32 bits on a GPU, where a product
    # with the multiplier does not fit (torch 2.11: "Scalar 3528905107 is out of range for type int32").
    slots = torch.arange(pairs, dtype=torch.int64, device=env_ids.device) | 0
    return philox2x32(slots[None, :], row_offset[:, None], row_key[:, None])
