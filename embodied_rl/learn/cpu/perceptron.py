"""Multilayer perceptrons on the CPU, faster than layer by layer: `perceptron.cpp`, built by the machine's own compiler.

Between the matrix products of a network as small as a walking robot's, torch spends as long on biases, activations and their
derivatives as on the products.  Where there is no compiler, or the network has other activations, torch computes it as ever.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from embodied_rl import machine
from embodied_rl.compiled import build

log = logging.getLogger("embodied_rl")

_SOURCE = Path(__file__).with_suffix(".cpp")
_HEADERS = _SOURCE.with_name("network.hpp"), _SOURCE.with_name("helpers.hpp")
#: Must equal MOST_LAYERS in network.hpp, which keeps the layers in arrays of this length.
MOST_LAYERS = 16
#: Must equal MOST_ACTIONS in network.hpp.
MOST_ACTIONS = 256
#: The activations that network.hpp knows, in the order of its `Activation`.
ACTIVATIONS = (nn.ELU, nn.ReLU, nn.Tanh)


class FrozenPerceptron:
    """The network with the weights of the last `refresh`, without gradients: one operation, which torch.compile takes whole.

    Where this machine cannot build it, the network itself.

    Args:
        network: answers float32 (R, inputs).
        helpers: how many threads may help the calling one.
    """

    def __init__(self, network: nn.Module, helpers: int = 0) -> None:
        layers = layers_of(network)
        library = load_library() if layers else None
        self._network, self._layers, self._library, self._helpers = network, layers, library, helpers
        self.fuses = library is not None
        """Whether it is one operation."""
        if library is not None:
            self._shape = shape_of(network)
            self._listed = list(self._shape)
            self._prepared = torch.empty(library.prepared_size(self._shape))
        self.refresh()

    def refresh(self) -> None:
        """Take the network's present weights."""
        if self._library is not None:
            weights, biases = [layer.weight for layer in self._layers], [layer.bias for layer in self._layers]
            prepare(self._library, self._shape, weights, biases, self._prepared)

    def __call__(self, x: Tensor) -> Tensor:
        """(R, inputs) to (R, outputs)."""
        if not self.fuses:
            return self._network(x)
        return torch.ops.embodied_rl.perceptron(x, self._prepared, self._listed, self._helpers)


_SCHEMA = "(Tensor x, Tensor prepared, int[] shape, int helpers) -> Tensor"


@torch.library.custom_op("embodied_rl::perceptron", mutates_args=(), schema=_SCHEMA)
def _infer(x: Tensor, prepared: Tensor, shape: list[int], helpers: int) -> Tensor:
    library = load_library()
    assert library is not None and x.dtype == torch.float32
    x = x if x.stride(-1) == 1 else x.contiguous()
    y = x.new_empty(len(x), shape[-1])
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    rows, apart = ctypes.c_int64(len(x)), ctypes.c_int64(x.stride(0))
    library.infer(rows, sizes, address(x), apart, address(prepared), address(y), helpers)
    return y


@_infer.register_fake
def _shape(x: Tensor, prepared: Tensor, shape: list[int], helpers: int) -> Tensor:
    return x.new_empty(len(x), shape[-1])


def layers_of(network: nn.Module) -> list[nn.Linear]:
    """The layers of a network that `perceptron.cpp` computes; none, of one that it does not."""
    modules = list(network) if isinstance(network, nn.Sequential) else []
    layers = [module for module in modules if isinstance(module, nn.Linear)]
    between = [module for module in modules if not isinstance(module, nn.Linear)]
    alternate = [isinstance(module, nn.Linear) for module in modules] == [index % 2 == 0 for index in range(len(modules))]
    same = len({type(module) for module in between}) <= 1
    known = same and all(isinstance(module, ACTIVATIONS) and getattr(module, "alpha", 1.0) == 1.0 for module in between)
    parameters = (parameter for layer in layers for parameter in (layer.weight, layer.bias))
    singles = all(p is not None and p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters)
    return layers if alternate and known and singles and len(between) + 1 == len(layers) <= MOST_LAYERS else []


def shape_of(network: nn.Module) -> ctypes.Array:
    """How many layers, the activation between them, inputs of the first, outputs of each."""
    layers = layers_of(network)
    between = [kind for kind in ACTIVATIONS if any(isinstance(module, kind) for module in network.children())]
    activation = ACTIVATIONS.index(between[0]) if between else 0
    return shape(activation, layers[0].in_features, [layer.out_features for layer in layers])


def shape(activation: int, inputs: int, outputs: Sequence[int]) -> ctypes.Array:
    """Write what `shape_of` says of a network, with the place of its activation among those known."""
    return (ctypes.c_int64 * (len(outputs) + 3))(len(outputs), activation, inputs, *outputs)


def prepare(
    library: ctypes.CDLL, shape: ctypes.Array, weights: Sequence[Tensor], biases: Sequence[Tensor], out: Tensor | None = None
) -> Tensor:
    """A network's present weights as its products want them."""
    prepared = weights[0].new_empty(library.prepared_size(shape)) if out is None else out
    library.prepare(shape, addresses(weights), addresses(biases), address(prepared))
    return prepared


@functools.cache
def load_library(source: Path | None = None) -> ctypes.CDLL | None:
    """The compiled source, or another that includes `network.hpp`; None, with a line in the log, where it cannot be had."""
    source = source or _SOURCE
    error = "Windows' compiler has no vector types" if sys.platform == "win32" else machine.cpp_error()
    if error is None:
        try:
            library = ctypes.CDLL(str(build(source, _HEADERS, ("-pthread",))))
        except (OSError, subprocess.SubprocessError) as reason:
            error = f"{source.name} does not build: {str(reason).partition(chr(10))[0]}"
        else:
            for name in ("prepared_size", "learn_size"):
                if hasattr(library, name):
                    getattr(library, name).restype = ctypes.c_int64
            return library
    said = "%s: the networks are computed layer by layer, and updates take twice as long; `embodied-rl doctor` says more"
    log.warning(said, error)
    return None


def address(tensor: Tensor, offset: int = 0) -> ctypes.c_void_p:
    """Point to element `offset` of the tensor's storage, counted from the tensor's first."""
    return ctypes.c_void_p(tensor.data_ptr() + offset * tensor.element_size())


def addresses(tensors: Sequence[Tensor]) -> ctypes.Array:
    """Point to each tensor's first element, in a C array."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def starts_of(parameters: Sequence[Tensor]) -> dict[Tensor, int]:
    """Say where each one's gradient begins in a bucket."""
    ends = itertools.accumulate((parameter.numel() for parameter in parameters), initial=0)
    return dict(zip(parameters, ends, strict=False))


def places(first: int, starts: Sequence[int]) -> ctypes.Array:
    """Point to floats that stand so far behind the address `first`, in a C array."""
    return (ctypes.c_void_p * len(starts))(*(first + 4 * start for start in starts))
