"""The gradients of soft actor-critic in two passes through the cache: what `SAC` says, computed by `soft_actor_critic.cpp`.

It serves critics that say returns themselves and networks that are plain perceptrons with ELU, ReLU or tanh, on the CPU; torch
serves all others.  Of the actor's step it takes each row back through the critic that expects less, and through no other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from embodied_rl.learn.cpu.perceptron import (
    ACTIVATIONS,
    MOST_ACTIONS,
    MOST_LAYERS,
    address,
    addresses,
    layers_of,
    load_library,
    places,
    prepare,
    shape,
    shape_of,
    starts_of,
)
from embodied_rl.learn.cpu.team import Team, cut
from embodied_rl.learn.gradient_steps import GradientSteps
from embodied_rl.learn.policy import LOG_STD
from embodied_rl.learn.replay import Drawn
from embodied_rl.learn.twin_critic import TwinCritic

_SOURCE = Path(__file__).with_name("cpu") / "soft_actor_critic.cpp"
#: A page's names of them.
_ACTIVATIONS = [kind.__name__.lower() for kind in ACTIVATIONS]
#: Rows of a part, at least: each worth a thread's waking up.
_LEAST_ROWS = 128


class _Batch(ctypes.Structure):
    """Must equal the struct `SoftBatch` in soft_actor_critic.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("obs", "critic_obs", "next_obs", "next_critic_obs")),
        *((name, ctypes.c_void_p) for name in ("actions", "rewards", "discount", "weight")),
        *((name, ctypes.c_void_p) for name in ("next_noise", "noise", "log_alpha", "errors")),
        *((name, ctypes.c_int64) for name in ("inputs", "critic_inputs", "width")),
        *((name, ctypes.c_float) for name in ("low", "high", "entropy")),
    )


class SoftGradients:
    """Sums over a batch of a loss's gradient, and of what stands behind it in the bucket.

    Args:
        libraries: `perceptron.cpp` and `soft_actor_critic.cpp`.
        actor: from observations to means and logarithms of deviations.
        critics: both, and their targets.
        log_alpha: ().
        parameters: of the critics, and of actor and alpha, each in its bucket's order.
        entropy: that alpha is to hold.
        team: shares the rows; None: the calling thread has them all.
    """

    def __init__(
        self,
        libraries: tuple[ctypes.CDLL, ctypes.CDLL],
        actor: nn.Module,
        critics: tuple[TwinCritic, TwinCritic],
        log_alpha: Tensor,
        parameters: tuple[Sequence[nn.Parameter], Sequence[nn.Parameter]],
        entropy: float,
        team: Team | None,
    ) -> None:
        (self._perceptron, self._library), self._team = libraries, team
        self._log_alpha, self._entropy, layers = log_alpha, entropy, layers_of(actor)
        self._shapes = shape_of(actor), _shape_of_critic(critics[0])
        own = [([x.weight for x in layers], [x.bias for x in layers])]
        own += [([x[c] for x in twin.weights], [x[c] for x in twin.biases]) for twin in critics for c in (0, 1)]
        shapes = self._shapes[0], *[self._shapes[1]] * 4
        self._actor, *others = (_Prepared(self._perceptron, shape, *pair) for shape, pair in zip(shapes, own, strict=True))
        self._critics, self._targets = others[:2], others[2:]
        starts = [starts_of(group) for group in parameters]
        self._sizes = [sum(parameter.numel() for parameter in group) for group in parameters]
        learns = (
            [*critics[0].weights, *critics[0].biases],
            [*(getattr(x, name) for x in layers for name in ("weight", "bias")), log_alpha],
        )
        assert [set(group) for group in parameters] == [set(group) for group in learns]  # a bucket has nothing else
        self._critic_places = [
            [[starts[0][x] + c * (x.numel() // 2) for x in group] for group in (critics[0].weights, critics[0].biases)]
            for c in (0, 1)
        ]  # fmt: skip
        self._actor_places = [[starts[1][getattr(x, name)] for x in layers] for name in ("weight", "bias")]
        self._alpha_place = next(start for parameter, start in starts[1].items() if parameter is log_alpha)

    def critics(self, batch: Drawn, noise: Tensor, errors: Tensor, bucket: Tensor) -> None:
        """Fill the bucket of the critics, (gradients and sums,), and `errors` (R,), from a batch and its noise, (2, R, A)."""
        self._actor.refresh()
        critics, targets = (_Pair.of(pair) for pair in (self._critics, self._targets))
        own, shapes = self._batch(batch, noise, errors), self._shapes

        def run(rows: slice, result: int) -> None:
            there = [[places(result, starts) for starts in pair] for pair in self._critic_places]
            weights, biases = ((ctypes.c_void_p * 2)(*(ctypes.addressof(pair[i]) for pair in there)) for i in (0, 1))
            self._library.soft_critics(
                ctypes.byref(own), *_span(rows), shapes[0], address(self._actor.values), shapes[1], ctypes.byref(critics),
                ctypes.byref(targets), weights, biases, ctypes.c_void_p(result + 4 * self._sizes[0]),
            )  # fmt: skip

        self._share(run, len(errors), bucket)

    def actor(self, batch: Drawn, noise: Tensor, errors: Tensor, bucket: Tensor) -> None:
        """Fill the bucket of actor and alpha, (gradients and sums,), from a batch and its noise, (2, R, A)."""
        self._actor.refresh()
        critics = _Pair.of(self._critics)
        own, shapes = self._batch(batch, noise, errors), self._shapes

        def run(rows: slice, result: int) -> None:
            there = [places(result, starts) for starts in self._actor_places]
            alpha, sums = (ctypes.c_void_p(result + 4 * place) for place in (self._alpha_place, self._sizes[1]))
            self._library.soft_actor(
                ctypes.byref(own), *_span(rows), shapes[0], self._actor.weights, address(self._actor.values), shapes[1],
                ctypes.byref(critics), *there, alpha, sums,
            )  # fmt: skip

        self._share(run, len(errors), bucket)

    def _batch(self, batch: Drawn, noise: Tensor, errors: Tensor) -> _Batch:
        """Say where everything stands."""
        tensors = {
            "obs": batch.obs["actor"],
            "critic_obs": batch.obs["critic"],
            "next_obs": batch.next_obs["actor"],
            "next_critic_obs": batch.next_obs["critic"],
            "actions": batch.actions,
            "rewards": batch.rewards,
            "discount": batch.discount,
            "weight": batch.weight,
            "next_noise": noise[0],
            "noise": noise[1],
            "log_alpha": self._log_alpha,
            "errors": errors,
        }
        assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in tensors.values())
        sizes = {"inputs": tensors["obs"].shape[1], "critic_inputs": tensors["critic_obs"].shape[1], "width": noise.shape[-1]}
        low, high = LOG_STD
        return _Batch(
            **{name: tensor.data_ptr() for name, tensor in tensors.items()}, **sizes, low=low, high=high, entropy=self._entropy
        )

    def _share(self, run: Callable[[slice, int], None], rows: int, bucket: Tensor) -> None:
        """Call `run` on parts of the rows, and sum what they leave into the bucket."""
        parts = cut(rows, rows // _LEAST_ROWS)
        results = bucket.new_empty(len(parts), len(bucket))
        work = lambda part: run(parts[part], results[part].data_ptr())  # noqa: E731
        each = map if self._team is None else self._team.map
        list(each(work, range(len(parts))))
        torch.sum(results, dim=0, out=bucket)


class _Prepared:
    """A network's weights as its products want them."""

    def __init__(self, library: ctypes.CDLL, shape: ctypes.Array, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        self._library, self._shape, self._both = library, shape, (weights, biases)
        self.weights = addresses(weights)
        self.values = torch.empty(library.prepared_size(shape))

    def refresh(self) -> None:
        """Take the present ones."""
        prepare(self._library, self._shape, *self._both, self.values)


class _Pair(ctypes.Structure):
    """Must equal the struct `Pair` in soft_actor_critic.cpp."""

    _fields_ = (("weights", ctypes.c_void_p * 2), ("prepared", ctypes.c_void_p * 2))

    @classmethod
    def of(cls, both: Sequence[_Prepared]) -> _Pair:
        for one in both:
            one.refresh()
        weights = (ctypes.c_void_p * 2)(*(ctypes.addressof(one.weights) for one in both))
        return cls(weights, (ctypes.c_void_p * 2)(*(one.values.data_ptr() for one in both)))


def soft_gradients(
    actor: nn.Module,
    critics: tuple[TwinCritic, TwinCritic],
    log_alpha: Tensor,
    steps: tuple[GradientSteps, GradientSteps],
    entropy: float,
    *,
    alone: bool,
) -> SoftGradients | None:
    """Make the gradients of soft actor-critic in two passes, where this machine can build them and they can compute them.

    Args:
        actor: see `SoftGradients`, as the others.
        critics: both, and their targets.
        log_alpha: ().
        steps: of the critics, and of actor and alpha.
        entropy: that alpha is to hold.
        alone: whether all of this process's cores are its own.
    """
    layers, twin = layers_of(actor), critics[0]
    if not layers or layers[-1].out_features > 2 * MOST_ACTIONS or len(twin.weights) > MOST_LAYERS:
        return None
    if len(twin.gains) or twin.activation not in _ACTIVATIONS or twin.weights[-1].shape[1] != 1:
        return None
    libraries = load_library(), load_library(_SOURCE)
    if libraries[0] is None or libraries[1] is None:
        return None
    parameters, team = (steps[0].parameters, steps[1].parameters), steps[0].team if alone else None
    return SoftGradients((libraries[0], libraries[1]), actor, critics, log_alpha, parameters, entropy, team)


def _shape_of_critic(twin: TwinCritic) -> ctypes.Array:
    """As `shape_of`, of each of both."""
    widths = [weight.shape[1] for weight in twin.weights]
    return shape(_ACTIVATIONS.index(twin.activation), twin.weights[0].shape[2], widths)


def _span(rows: slice) -> tuple[ctypes.c_int64, ctypes.c_int64]:
    return ctypes.c_int64(rows.start), ctypes.c_int64(rows.stop - rows.start)
