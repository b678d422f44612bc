"""The gradient of a minibatch in one pass through the cache: what `PPO._losses` says, computed by `perceptron.cpp`.

Rows are gathered, taken through both networks and back, and added to the gradient, some hundred at a time, without leaving the
second-level cache.  It serves Gaussian policies whose networks are perceptrons with ELU, ReLU or tanh, on the CPU; torch serves
all others.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embodied_rl.learn.batch import Batch
from embodied_rl.learn.cpu.perceptron import (
    MOST_ACTIONS,
    address,
    addresses,
    layers_of,
    load_library,
    places,
    prepare,
    shape_of,
    starts_of,
)
from embodied_rl.learn.cpu.team import Team, cut

#: Rows of a part, at least: each worth a thread's waking up.
_LEAST_ROWS = 384
#: Columns of the batch, in the order of `Minibatch`.
_COLUMNS = ("actor", "mirrored_actor", "critic", "mirrored_critic", "action", "output", "log_prob", "value", "return")
_COLUMNS += ("advantage", "weight")


class _Minibatch(ctypes.Structure):
    """Must equal the struct `Minibatch` in perceptron.cpp."""

    _fields_ = (
        ("table", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("columns", *_COLUMNS, "copies", "actions")),
        *((name, ctypes.c_void_p) for name in ("mirror", "sign", "std", "old_std", "scale", "entropy")),
        *((name, ctypes.c_float) for name in ("clip", "value_coef")),
        ("clip_value", ctypes.c_int64),
    )


@dataclass(frozen=True)
class Terms:
    """What the loss is made of beside the batch."""

    std: Callable[[], Tensor]
    """Standard deviation of the actions, (A,), a function of the parameters that are no network's."""
    mirror: tuple[Tensor, Tensor] | None
    """Index and sign of mirrored actions, (A,), where each transition counts twice."""
    advantage_scale: Tensor
    """Mean and deviation of the advantages, (2,)."""
    entropy_coef: Tensor
    clip_param: float
    value_loss_coef: float
    clip_value: bool


class Gradients:
    """Sums over rows of a batch of the loss's gradient, and of what stands behind it in the bucket.

    Args:
        library: `perceptron.cpp`.
        networks: actor and critic.
        parameters: of both, in the bucket's order.
        terms: of the loss.
        team: shares the rows.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        networks: tuple[nn.Module, nn.Module],
        parameters: Sequence[nn.Parameter],
        terms: Terms,
        team: Team,
    ) -> None:
        self._library, self._terms, self._team = library, terms, team
        self._shapes = [shape_of(network) for network in networks]
        both = [layers_of(network) for network in networks]
        self._weights = [([x.weight for x in layers], [x.bias for x in layers]) for layers in both]
        starts = starts_of(parameters)
        self._starts = [([starts[x.weight] for x in layers], [starts[x.bias] for x in layers]) for layers in both]
        own = {parameter for layers in both for layer in layers for parameter in (layer.weight, layer.bias)}
        self._others = [(parameter, start) for parameter, start in starts.items() if parameter not in own]
        self._size = sum(parameter.numel() for parameter in parameters)  # behind it stand the sums
        self._scratch = torch.empty(0)
        self._kept_alive = parameters  # their addresses are known

    def __call__(self, batch: Batch, rows: Tensor, old_std: Tensor, bucket: Tensor) -> None:
        """Fill the bucket, (gradients and sums,), from rows (B,) of the batch."""
        terms, std = self._terms, self._terms.std()
        deviation, old_std = std.detach().contiguous(), old_std.contiguous()
        copies = 1 if terms.mirror is None else 2
        index, sign = terms.mirror or (rows, deviation)
        at = batch.first_columns()
        minibatch = _Minibatch(
            table=address(batch.table),
            columns=batch.table.shape[-1],
            **{name: at.get(name, 0) for name in _COLUMNS},
            copies=copies,
            actions=len(deviation),
            mirror=address(index),
            sign=address(sign),
            std=address(deviation),
            old_std=address(old_std),
            scale=address(terms.advantage_scale),
            entropy=address(terms.entropy_coef),
            clip=terms.clip_param,
            value_coef=terms.value_loss_coef,
            clip_value=terms.clip_value,
        )
        parts = cut(len(rows), len(rows) * copies // _LEAST_ROWS)
        results = bucket.new_zeros(len(parts), len(bucket) + len(deviation))  # each: the bucket, and dL/dsigma
        size = self._library.learn_size(*self._shapes)
        if self._scratch.shape != (len(parts), size):
            self._scratch = bucket.new_empty(len(parts), size)
        own = zip(self._shapes, self._weights, strict=True)
        actor, critic = ((shape, addresses(both[0]), prepare(self._library, shape, *both)) for shape, both in own)

        def run(part: int) -> None:
            taken, own = parts[part], results[part].data_ptr()
            there = [[places(own, starts) for starts in pair] for pair in self._starts]
            self._library.learn(
                ctypes.byref(minibatch),
                address(rows, taken.start),
                ctypes.c_int64(taken.stop - taken.start),
                *actor[:2],
                address(actor[2]),
                *critic[:2],
                address(critic[2]),
                *(*there[0], *there[1]),
                ctypes.c_void_p(own + 4 * len(bucket)),
                ctypes.c_void_p(own + 4 * self._size),
                address(self._scratch[part]),
            )

        self._team.map(run, range(len(parts)))
        total = results.sum(0)
        bucket.copy_(total[: len(bucket)])
        if not self._others:
            return
        slopes = torch.autograd.grad(std, [parameter for parameter, _ in self._others], total[len(bucket) :])
        for (parameter, start), slope in zip(self._others, slopes, strict=True):
            bucket[start : start + parameter.numel()] = slope.flatten()


def fused_gradients(
    networks: tuple[nn.Module, nn.Module], parameters: Sequence[nn.Parameter], terms: Terms, team: Team
) -> Gradients | None:
    """Make the gradients of actor and critic in one pass, where this machine can build it and it can compute them."""
    actor, critic = map(layers_of, networks)
    if not actor or not critic or actor[-1].out_features > MOST_ACTIONS or critic[-1].out_features != 1:
        return None
    library = load_library()
    return Gradients(library, networks, parameters, terms, team) if library is not None else None
