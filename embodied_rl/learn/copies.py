"""Copies that work elsewhere: of a policy in plain torch, so that who acts needs no learner, and numbers as one array."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from embodied_rl.errors import UserError
from embodied_rl.learn.policy import Policy


class FrozenNormalizer(nn.Module):
    """(x - mean) / (std + eps), held while a rollout is collected.

    Args:
        size: how many numbers an observation has.
        eps: see above.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(1, size))
        self.register_buffer("std", torch.ones(1, size))

    def forward(self, obs: Tensor) -> Tensor:
        """(N, O) to (N, O)."""
        return (obs - self.mean) / (self.std + self.eps)


class _Held(nn.Module):
    """A tensor that is called for."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> Tensor:
        return self.value  # type: ignore[return-value]


def plain_copy(policy: Policy, device: torch.device | str = "cpu") -> Policy:
    """Copy a policy's arithmetic into torch's own modules, by default on the CPU; it no longer learns.

    Raises:
        UserError: its network is no chain of layers, or its normalizer neither rsl_rl's nor torch.nn.Identity.
    """
    if not isinstance(policy.network, nn.Sequential):
        raise _no_copy("network", policy.network, "make it a torch.nn.Sequential")
    normalizer = plain_normalizer(policy.normalizer)
    # not `children`: it names a layer once that stands at several places, as activations do
    network = nn.Sequential(*(copy.deepcopy(layer) for layer in policy.network))
    memory = copy.deepcopy(policy.memory)
    std = None if policy.std is None else _Held(policy.std.detach().clone())
    copied = Policy(normalizer, network, std, memory, copy.deepcopy(policy.squash))
    for part in _modules(copied):
        part.to(device).requires_grad_(False).zero_grad()  # or it keeps copies of the learner's
    unpack(copied, pack(policy))
    return copied


def plain_normalizer(normalizer: nn.Module) -> nn.Module:
    """Copy a normalizer as it is now, on the CPU.

    Raises:
        UserError: it is neither rsl_rl's nor torch.nn.Identity.
    """
    if isinstance(normalizer, nn.Identity):
        return nn.Identity()
    mean, std, eps = (getattr(normalizer, name, None) for name in ("_mean", "_std", "eps"))
    if not isinstance(mean, Tensor) or not isinstance(std, Tensor) or not isinstance(eps, float):
        raise _no_copy("normalizer", normalizer, "make it rsl_rl's EmpiricalNormalization, or torch.nn.Identity")
    made = FrozenNormalizer(mean.shape[-1], eps)
    made.mean.copy_(mean)
    made.std.copy_(std)
    return made


def _no_copy(what: str, part: object, advice: str) -> UserError:
    return UserError(
        f"train.learner: its policy's {what} is a {type(part).__name__}, of which robots that are apart from it "
        f"(a pool's, train.overlap, train.device) have no copy; {advice}"
    )


def pack(policy: Policy) -> np.ndarray:
    """Every number that the policy's answers depend on, float32 (W,)."""
    tensors: list[Tensor] = list(policy.network.parameters())
    if policy.memory is not None:
        tensors += list(policy.memory.parameters())
    for names in (("_mean", "_std"), ("mean", "std")):
        if isinstance(policy.normalizer, FrozenNormalizer) == (names[0] == "mean"):
            tensors += [tensor for name in names if isinstance(tensor := getattr(policy.normalizer, name, None), Tensor)]
    if policy.std is not None:
        tensors.append(policy.std)
    if policy.squash is not None:
        tensors += policy.squash.buffers()
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).float().cpu().numpy()


@torch.no_grad()
def unpack(policy: Policy, numbers: np.ndarray) -> None:
    """Write them into a `plain_copy`."""
    targets: list[Tensor] = []
    for part in _modules(policy):
        targets += [*part.parameters(), *part.buffers()]
    given = torch.from_numpy(np.array(numbers))
    for target, values in zip(targets, given.split([target.numel() for target in targets]), strict=True):
        target.copy_(values.view_as(target))


def pack_networks(networks: Mapping[str, nn.Module]) -> np.ndarray:
    """Every number that a learner's networks compute with, their normalizers' among them, float32 (W,), a copy.

    What is no float, a normalizer's count, stays where it is counted.
    """
    return torch.cat([tensor.detach().flatten() for tensor in _floats(networks)]).cpu().numpy()


@torch.no_grad()
def unpack_networks(networks: Mapping[str, nn.Module], numbers: np.ndarray) -> None:
    """Write them into networks of the same shapes, in place."""
    targets = _floats(networks)
    given = torch.from_numpy(np.array(numbers))
    for target, values in zip(targets, given.split([target.numel() for target in targets]), strict=True):
        target.copy_(values.view_as(target))


def checksum(numbers: np.ndarray) -> int:
    """Sum up packed numbers, so that two who have equal ones know it: CRC-32 of their bytes."""
    return zlib.crc32(np.ascontiguousarray(numbers).data)


def _floats(networks: Mapping[str, nn.Module]) -> list[Tensor]:
    """List the floats of a learner's networks, by reference, in an order that stays."""
    return [tensor for network in networks.values() for tensor in network.state_dict().values() if tensor.is_floating_point()]


def _modules(policy: Policy) -> list[nn.Module]:
    """List the parts in the order of `pack`."""
    parts = (policy.network, policy.memory, policy.normalizer, policy._std, policy.squash)
    return [part for part in parts if isinstance(part, nn.Module)]
