"""What acts: it knows plain torch and no learner, so that a worker far away can run it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from embodied_rl.errors import UserError
from embodied_rl.learn.distributions import Categorical, Distribution, Gaussian, SquashedGaussian
from embodied_rl.vector_env import Obs

#: What a recurrent network remembers of each robot, each (layers, N, hidden): h of a GRU, h and c of an LSTM; else nothing.
Memory = tuple[Tensor, ...]
#: What it is called in a checkpoint, among a robot's own state.
MEMORY = "policy.memory."
#: Bounds of the logarithm of a deviation that a network says, as everybody has them since soft actor-critic's first code.
LOG_STD = (-20.0, 2.0)


class Squash(nn.Module):
    """What turns a network's outputs, means and logarithms of deviations of u, into actions: bound * tanh(u).

    Args:
        bound: largest action, either way, (A,).
    """

    def __init__(self, bound: Tensor) -> None:
        super().__init__()
        self.bound: Tensor
        self.uniform: Tensor
        self.register_buffer("bound", bound)
        # while there is nothing to go by yet: read by address
        self.register_buffer("uniform", torch.zeros((), device=bound.device), persistent=False)
        self.ladder: float = 0.0
        """Of a worker on a ladder of exploration: the deviation of its actions in +-1, in place of the network's; 0: that one."""

    def distribution(self, output: Tensor) -> SquashedGaussian:
        """Make the distribution of the network's output (..., 2 A)."""
        mean, log_std = output.chunk(2, dim=-1)
        return SquashedGaussian(mean, log_std.clamp(*LOG_STD), self.bound, self.uniform, self.ladder)

    def forward(self, output: Tensor) -> Tensor:
        """(N, 2 A) to actions without exploration, (N, A)."""
        return self.bound * torch.tanh(output[..., : len(self.bound)])


class Policy:
    """What acts: an actor's normalizer, network and distribution, by reference; it learns as they learn.

    Args:
        normalizer: of the observations.
        network: from normalized observations, or from the memory's features, to the distribution's outputs.
        std: the standard deviation of a Gaussian, (A,); None for a choice among the outputs, or with `squash`.
        memory: the recurrent network before it, if any.
        squash: bounds the actions of a Gaussian whose deviations the network says, too.
    """

    def __init__(
        self,
        normalizer: nn.Module,
        network: nn.Module,
        std: Callable[[], Tensor] | None,
        memory: nn.RNNBase | None = None,
        squash: Squash | None = None,
    ) -> None:
        self.normalizer, self.network, self.memory, self._std, self.squash = normalizer, network, memory, std, squash

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.network.parameters()).device

    @property
    def obs_size(self) -> int:
        """How many numbers an observation has."""
        return next(self.network.parameters()).shape[1] if self.memory is None else self.memory.input_size

    @property
    def std(self) -> Tensor | None:
        """Standard deviation of the actions, (A,), where they are Gaussian."""
        return self._std() if self._std else None

    def __call__(
        self, obs: Tensor, memory: Memory = (), network: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Distribution, Memory]:
        """Return the distribution of the actions that answer the observations (N, O), and what is remembered from now on.

        `network`, where it is given, computes what the policy's own would, by other means.
        """
        features = self.normalizer(obs)
        if self.memory is not None:
            features, memory = remember(self.memory, features, memory)
        return self.distribution((network or self.network)(features)), memory

    def outputs(self, obs: Tensor, done: Tensor, memory: Memory = ()) -> Tensor:
        """Return what the network says of sequences of observations (T, N, O): (T, N, P).

        Args:
            obs: of T steps, one after the other.
            done: bool (T, N): after such a step an episode begins, without memories.
            memory: what was remembered before the first step.
        """
        features = self.normalizer(obs)
        if self.memory is not None:
            features = unroll(self.memory, features, done.to(features.dtype), memory)
        return self.network(features)

    def distribution(self, output: Tensor, std: Tensor | None = None) -> Distribution:
        """Make a distribution of the network's output (..., P); `std` stands for the present one."""
        if self.squash is not None:
            return self.squash.distribution(output)
        if self._std is None:
            return Categorical(output)
        return Gaussian(output, self._std() if std is None else std)

    def deploy(self) -> nn.Module:
        """Make the module that a robot runs, a copy: mean actions (N, A), or the choices' logits, of observations (N, O).

        That of a recurrent policy takes what it remembers too, and gives it anew: `actions, *memory = module(obs, *memory)`.
        """
        if self.memory is None:
            parts = (self.normalizer, self.network, self.squash)
            return copy.deepcopy(nn.Sequential(*(part for part in parts if part is not None))).eval()
        return copy.deepcopy(_WithMemory(self.normalizer, self.memory, self.network)).eval()

    def bare(self) -> nn.Module:
        """Make what `deploy` makes, without the normalizer: what a robot would run that has forgotten it."""
        return Policy(nn.Identity(), self.network, self._std, self.memory, self.squash).deploy()

    def start(self, num_envs: int, device: torch.device | str) -> Memory:
        """Make the memory of episodes that begin."""
        if self.memory is None:
            return ()
        shape = (self.memory.num_layers, num_envs, self.memory.hidden_size)
        count = 2 if isinstance(self.memory, nn.LSTM) else 1
        return tuple(torch.zeros(shape, device=device) for _ in range(count))


class _WithMemory(nn.Module):
    """A recurrent policy from one call to the next."""

    def __init__(self, normalizer: nn.Module, memory: nn.RNNBase, network: nn.Module) -> None:
        super().__init__()
        self.normalizer, self.memory, self.network = normalizer, memory, network

    def forward(self, obs: Tensor, h: Tensor, c: Tensor | None = None) -> tuple[Tensor, ...]:
        features, memory = remember(self.memory, self.normalizer(obs), (h,) if c is None else (h, c))
        return self.network(features), *memory


def memory_by_robot(memory: Memory) -> dict[str, Tensor]:
    """Copy what is remembered as part of the robots' state, each (N, layers, hidden)."""
    return {f"{MEMORY}{index}": part.transpose(0, 1).clone() for index, part in enumerate(memory)}


def memory_and_rest(state: dict[str, Tensor]) -> tuple[Memory, dict[str, Tensor]]:
    """Take what `memory_by_robot` gave out of the robots' state: it, by reference, and the rest."""
    count = sum(name.startswith(MEMORY) for name in state)
    memory = tuple(state[f"{MEMORY}{index}"].transpose(0, 1) for index in range(count))
    return memory, {name: value for name, value in state.items() if not name.startswith(MEMORY)}


def remember(network: nn.RNNBase, features: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """One step of a GRU or an LSTM: features (N, F) to (N, hidden)."""
    state = memory if isinstance(network, nn.LSTM) else memory[0]
    out, state = network(features[None], state)
    return out[0], state if isinstance(state, tuple) else (state,)


def unroll(network: nn.RNNBase, features: Tensor, done: Tensor, memory: Memory) -> Tensor:
    """Take the steps of a GRU or an LSTM one after the other: features (T, N, F) to (T, N, hidden); `done` (T, N) forgets."""
    outputs = []
    for now, ends in zip(features, done, strict=True):
        out, memory = remember(network, now, memory)
        memory = tuple(part * (1.0 - ends)[:, None] for part in memory)  # the next episode begins without memories
        outputs.append(out)
    return torch.stack(outputs)


class Player:
    """A policy at work without exploration: mean actions, (N, A), of observations; it remembers between calls if it can.

    Args:
        policy: what acts.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self._memory = policy, ()

    def __call__(self, obs: Obs | Tensor) -> Tensor:
        """Mean actions of the observations of the group `actor`, (N, O), or of a dict of groups.

        Raises:
            UserError: the policy was trained on observations of another size.
        """
        group = obs["actor"] if isinstance(obs, dict) else obs
        if group.shape[-1] != self.policy.obs_size:
            raise UserError(
                f"the policy takes {self.policy.obs_size} observations, and {group.shape[-1]} are given; "
                "play it on the page that it was trained on"
            )
        with torch.inference_mode():
            # the robots may live on a GPU, and the policy was loaded on the CPU
            own = group.to(self.policy.device)
            if not self._memory or self._memory[0].shape[1] != len(group):
                self._memory = self.policy.start(len(group), own.device)
            distribution, self._memory = self.policy(own, self._memory)
            return distribution.mode.to(group.device)

    def forget(self, done: Tensor) -> None:
        """Begin anew in the rows of done, bool (N,), whose episodes have ended."""
        with torch.inference_mode():
            self._memory = tuple(part * ~done.to(part.device)[:, None] for part in self._memory)
