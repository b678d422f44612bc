"""Multilayer perceptrons on the CPU, faster than layer by layer: `perceptron.cpp`, built by the machine's own compiler.

Between the matrix products of a network as small as a walking robot's, torch spends as long on biases, activations and their
derivatives as on the products.  Where there is no compiler, or the network has other activations, torch computes it as ever.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embodied_rl import doctor

log = logging.getLogger("embodied_rl")

_SOURCE = Path(__file__).with_suffix(".cpp")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")
#: Of `perceptron.cpp`: it keeps the layers in arrays of this length.
_MOST_LAYERS = 16


def fused(network: nn.Sequential) -> Callable[[Tensor], Tensor]:
    """The network as one operation, where this machine can build it; else the network itself.

    The result takes float32 (..., inputs) on the CPU whose gradient nobody asks for, and is within rounding of the network's.
    """
    layers = [module for module in network if isinstance(module, nn.Linear)]
    between = [module for module in network if not isinstance(module, nn.Linear)]
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    alternate = [isinstance(module, nn.Linear) for module in network] == [index % 2 == 0 for index in range(len(network))]
    elus = all(isinstance(module, nn.ELU) and module.alpha == 1.0 for module in between)
    singles = all(p is not None and p.dtype == torch.float32 and p.device.type == "cpu" for p in parameters)
    if not (alternate and elus and singles and len(between) + 1 == len(layers) <= _MOST_LAYERS):
        return network
    library = _library()
    if library is None:
        return network
    widths = (ctypes.c_int64 * (len(layers) + 1))(layers[0].in_features, *(layer.out_features for layer in layers))

    def call(x: Tensor) -> Tensor:
        assert x.dtype == torch.float32 and not x.requires_grad
        y = _Perceptron.apply(library, widths, x.flatten(0, -2), *parameters)
        return y.view(*x.shape[:-1], layers[-1].out_features)

    return call


class _Perceptron(torch.autograd.Function):
    """y of x (R, K) under parameters (W_1, b_1, W_2, ...)."""

    @staticmethod
    def forward(ctx: Any, library: ctypes.CDLL, widths: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        x = x if x.stride(-1) == 1 else x.contiguous()
        layers, rows = len(widths) - 1, ctypes.c_int64(len(x))
        y = x.new_empty(len(x), widths[layers])
        kept = x.new_empty(library.kept_size(rows, layers, widths))
        scratch = x.new_empty(library.scratch_size(layers, widths))
        weights, biases = _addresses(parameters[0::2]), _addresses(parameters[1::2])
        library.forward(
            rows,
            layers,
            widths,
            _address(x),
            ctypes.c_int64(x.stride(0)),
            weights,
            biases,
            _address(y),
            _address(kept),
            _address(scratch),
        )
        ctx.library, ctx.widths = library, widths
        ctx.save_for_backward(kept, scratch, *parameters)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kept, scratch, *parameters = ctx.saved_tensors
        dy, layers = gradients[0].contiguous(), len(ctx.widths) - 1
        results = [torch.empty_like(parameter) for parameter in parameters]
        ctx.library.backward(
            ctypes.c_int64(len(dy)),
            layers,
            ctx.widths,
            _address(dy),
            _addresses(parameters[0::2]),
            _address(kept),
            _addresses(results[0::2]),
            _addresses(results[1::2]),
            _address(scratch),
        )
        return None, None, None, *results


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled source; None, with a line in the log, where it cannot be had."""
    error = "Windows' compiler has no vector types" if sys.platform == "win32" else doctor.cpp_error()
    if error is None:
        try:
            library = ctypes.CDLL(str(_build()))
        except (OSError, subprocess.SubprocessError) as reason:
            error = f"perceptron.cpp does not build: {str(reason).partition(chr(10))[0]}"
        else:
            library.kept_size.restype = library.scratch_size.restype = ctypes.c_int64
            return library
    log.warning("%s: the networks are computed layer by layer, a little slower; `embodied-rl doctor` says more", error)
    return None


def _build() -> Path:
    """The shared library for this machine's processor, built once and kept in the user's cache."""
    compiler = os.environ.get("CXX") or {"darwin": "clang++"}.get(sys.platform, "g++")
    # what the compiler makes of -march=native names the processor's abilities, should a home be shared among machines
    target = subprocess.run([compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, check=True)
    key = hashlib.sha256(_SOURCE.read_bytes() + target.stdout + " ".join(_FLAGS).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embodied_rl"
    path = folder / f"perceptron-{key}.so"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / path.name
            subprocess.run([compiler, *_FLAGS, "-o", str(built), str(_SOURCE)], capture_output=True, check=True, timeout=120)
            shutil.move(built, path)  # whole or not at all, should two processes build it
    return path


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
