"""What a worker does with weights and with what they led to: it acts, it says how wrong critics are, or it learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from embodied_rl.learn.copies import pack, pack_networks, unpack, unpack_networks
from embodied_rl.learn.policy import Policy
from embodied_rl.learn.rollout import Gradient, Rollout

if TYPE_CHECKING:
    from embodied_rl.learn.appraiser import Appraiser
    from embodied_rl.learn.ppo import PPO

Arrays = dict[str, np.ndarray]


class Duty(Protocol):
    """Holds what acts."""

    policy: Policy

    def load(self, weights: np.ndarray) -> None:
        """Take weights over, as they were packed where the learner is."""
        ...

    def weights(self) -> np.ndarray:
        """Pack those that it has."""
        ...

    def answer(self, rollout: Rollout, steps: int, iteration: int) -> Arrays:
        """Make what is sent of a rollout's first steps."""
        ...


class Acting:
    """The policy acts, and all that happened is sent."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def load(self, weights: np.ndarray) -> None:
        """See `Duty`."""
        unpack(self.policy, weights)

    def weights(self) -> np.ndarray:
        """See `Duty`."""
        return pack(self.policy)

    def answer(self, rollout: Rollout, steps: int, iteration: int) -> Arrays:
        """See `Duty`."""
        return to_arrays(rollout, steps)


class Appraising:
    """As `Acting`, with how wrong the critics are about each step beside it (Ape-X)."""

    def __init__(self, policy: Policy, appraiser: Appraiser) -> None:
        self.policy, self._appraiser = policy, appraiser
        self._size = len(pack(policy))

    def load(self, weights: np.ndarray) -> None:
        """See `Duty`."""
        unpack(self.policy, weights[: self._size])
        unpack_networks({"appraiser": self._appraiser}, weights[self._size :])

    def weights(self) -> np.ndarray:
        """See `Duty`."""
        return np.concatenate((pack(self.policy), pack_networks({"appraiser": self._appraiser})))

    def answer(self, rollout: Rollout, steps: int, iteration: int) -> Arrays:
        """See `Duty`."""
        done = to_arrays(rollout, steps)
        # what was cut off means nothing: no valid row, and no target is summed over it
        rollout.valid[steps:] = False
        return done | {"priorities": self._appraiser.priorities(self.policy, rollout)[:steps].numpy()}


class Learning:
    """The policy acts, a copy of the learner finds the gradient on what happened, and that is sent (A3C)."""

    def __init__(self, learner: PPO) -> None:
        self.policy, self._learner = learner.policy, learner

    def load(self, weights: np.ndarray) -> None:
        """See `Duty`."""
        unpack_networks(self._learner.networks, weights)

    def weights(self) -> np.ndarray:
        """See `Duty`."""
        return pack_networks(self._learner.networks)

    def answer(self, rollout: Rollout, steps: int, iteration: int) -> Arrays:
        """See `Duty`."""
        return gradient_arrays(rollout, self._learner.gradient(rollout, iteration))


def to_arrays(rollout: Rollout, steps: int) -> Arrays:
    """Turn a rollout's first steps into NumPy arrays, `final_obs` where an episode was truncated alone."""
    where = rollout.truncated[:steps].nonzero()
    tensors: dict[str, Tensor] = {"final_rows": where}
    for name in ("actions", "output", "rewards", "terminated", "truncated", "valid"):
        tensors[name] = getattr(rollout, name)[:steps]
    tensors |= {f"obs:{name}": value[:steps] for name, value in rollout.obs.items()}
    tensors |= {f"last_obs:{name}": value for name, value in rollout.last_obs.items()}
    tensors |= {f"final_obs:{name}": value[where[:, 0], where[:, 1]] for name, value in rollout.final_obs.items()}
    if rollout.log_prob is not None:
        tensors["log_prob"] = rollout.log_prob[:steps]
    tensors |= {f"memory:{index}": part for index, part in enumerate(rollout.memory)}
    if rollout.std is not None:
        tensors["std"] = rollout.std
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def gradient_arrays(rollout: Rollout, gradient: Gradient) -> Arrays:
    """Turn a gradient into NumPy arrays, with what is to be known of the rollout that it was found on."""
    tensors = {name: getattr(rollout, name) for name in ("rewards", "terminated", "truncated", "valid")}
    tensors |= {"gradient": gradient.bucket, "explained_variance": gradient.explained_variance}
    tensors |= {f"moments:{name}": moments for name, moments in gradient.moments.items()}
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}
