"""The policy's network as ONNX: `obs` (n, size) and what it remembers in, `actions` (n, A) and what it remembers next out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from embodied_rl.deploy.contract import DeployError
from embodied_rl.learn.policy import Memory, Policy

_OPSET = 18
#: Largest difference between onnxruntime and torch that rounding in float32 explains, and the rows that are compared.
_TOLERANCE, _ROWS = 1e-5, 64
#: Calls in a row, with different numbers of robots, that are compared.
_CALLS = (_ROWS, _ROWS, 1, 7)


def memory_parts(policy: Policy) -> list[dict[str, Any]]:
    """Name what the policy hands to its own next call: h of a GRU, h and c of an LSTM; the shapes are one robot's."""
    parts = zip(("h", "c"), policy.start(1, "cpu"), strict=False)
    return [{"input": name, "output": f"next_{name}", "shape": list(part.shape)} for name, part in parts]


def make_network(policy: Policy, metadata: dict[str, str]) -> bytes:
    """Write the policy as an ONNX file, once onnxruntime gives the same actions as torch.

    Args:
        policy: what acts; its weights stay as they are.
        metadata: text that the file holds, by key.

    Raises:
        DeployError: the network computes something else there.
    """
    module = policy.deploy().cpu()
    model = _to_onnx(module, policy)
    onnx.helper.set_model_props(model, metadata)
    data = model.SerializeToString()
    _check(data, module, policy)
    return data


def usual_obs(policy: Policy, rows: int) -> Tensor:
    """Draw observations (rows, size) as the policy's normalizer knows them, on the CPU."""
    noise = torch.randn(rows, policy.obs_size, generator=torch.Generator().manual_seed(rows))
    mean, std = getattr(policy.normalizer, "mean", None), getattr(policy.normalizer, "std", None)
    return noise if mean is None or std is None else mean.cpu() + std.cpu() * noise


def _to_onnx(module: nn.Module, policy: Policy) -> onnx.ModelProto:
    names = [part["input"] for part in memory_parts(policy)]
    rows = torch.export.Dim("n")
    with _quiet():
        program = torch.onnx.export(
            module,
            (torch.zeros(2, policy.obs_size), *policy.start(2, "cpu")),
            dynamo=True,
            verbose=False,
            opset_version=_OPSET,
            input_names=["obs", *names],
            output_names=["actions", *(f"next_{name}" for name in names)],
            dynamic_shapes=({0: rows}, *({1: rows} for _ in names)),
        )
    assert program is not None
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        del part.metadata_props[:]  # stack traces, with the paths of this machine
    return model


def _check(data: bytes, module: nn.Module, policy: Policy) -> None:
    """Compare with torch: some calls in a row, of more than one number of rows."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    memory: Memory = ()
    for rows in _CALLS:
        obs = usual_obs(policy, rows)
        memory = tuple(part[:, :rows] for part in memory or policy.start(rows, "cpu"))
        if memory and memory[0].shape[1] < rows:
            memory = policy.start(rows, "cpu")
        with torch.no_grad():
            wanted = module(obs, *memory)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        given = dict(zip(names, (one.numpy() for one in (obs, *memory)), strict=True))
        for one, other in zip(session.run(None, given), wanted, strict=True):
            error = float((torch.from_numpy(one) - other).abs().max())
            if not error <= _TOLERANCE:
                raise DeployError(
                    f"the exported network differs from torch by {error:.1e}, more than {_TOLERANCE:.0e}: nothing written"
                )
        memory = wanted[1:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings of packages that it does without and of its own deprecations."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
