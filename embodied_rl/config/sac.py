"""What a page may say of soft actor-critic."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from pydantic import Field

from embodied_rl.config.model import Count, Model, Widths
from embodied_rl.config.types import Fraction, NaturalNumber, NonNegative, Positive


class SACSettings(Model):
    """Soft actor-critic on a replay of what the robots did."""

    batch_size: Count = Field(default=256, description="rows of an update, on each rank")
    updates: Positive = Field(default=1.0, description="updates for each step of all robots, however many they are")
    actor_interval: Count = Field(default=1, description="every so many updates of the critic the actor and alpha have theirs")
    gamma: Fraction = 0.99
    n_steps: Annotated[int, Ge(1), Le(100)] = Field(default=1, description="rewards that a target sums before it bootstraps")
    tau: Annotated[float, Gt(0), Le(1)] = Field(default=0.005, description="share of the critic that its target takes over")
    learning_rate: Positive = Field(default=3e-4, description="of the actor, the critic and alpha")
    max_grad_norm: Positive | None = Field(default=None, description="of each network; null: gradients are taken as they are")
    alpha: Positive = Field(
        default=0.01,
        description="weight of the entropy at the start, which the update then moves; alpha times the entropy, summed over 1 / "
        "(1 - gamma) steps, is to be less than value_range",
    )
    target_entropy: float = Field(
        default=-1.0, description="entropy that alpha holds the policy to, for each number of an action in +-1"
    )
    action_bound: Positive | None = Field(
        default=None,
        description="action that an output of +-1 stands for; null: of a robot's joint what reaches its farther limit from the "
        "default pose, (limit - default) / scale, of another's environment the bounds of its actions",
    )
    critic: Literal["distributional", "mse"] = Field(
        default="distributional", description="distributional: probabilities of `atoms` returns in +-value_range"
    )
    atoms: Annotated[int, Ge(2), Le(1001)] = 101
    value_range: Positive = Field(default=5.0, description="largest return that a distributional critic knows, scaled")
    scale_rewards: bool = Field(
        default=True, description="divide rewards by the deviation of returns so far, or so that the largest is value_range"
    )
    actor_hidden_dims: Widths = (256, 256)
    critic_hidden_dims: Widths = (256, 256)
    activation: Literal["elu", "relu", "tanh", "swish"] = "relu"
    layer_norm: bool = Field(default=True, description="normalize what each hidden layer of the critic gives on")
    obs_normalization: bool = True
    bfloat16: bool = Field(default=False, description="networks of the update compute in bfloat16")
    symmetry: Literal["none", "augmentation"] = Field(
        default="none", description="augmentation: half of a batch's rows are shown in the mirror"
    )
    replay_size: Annotated[int, Ge(1), Le(2**40)] = Field(
        default=1_000_000, description="rows (steps of one robot) that are kept, of all robots of a rank together"
    )
    learning_starts: NaturalNumber = Field(
        default=5_000, description="rows, of all robots, before the first update; until then actions are uniform in +-1"
    )
    prioritized: bool = Field(default=False, description="draw rows by how wrong the critic was about them, and not uniformly")
    priority_exponent: Fraction = Field(default=0.6, description="prioritized: 0 draws uniformly, 1 in proportion to the error")
    importance_exponent: Annotated[float, Ge(0), Le(1)] = Field(
        default=0.4, description="prioritized: how far weights make up for the drawing; 1: in full"
    )
    samples_per_insert: Positive | None = Field(
        default=None,
        description="rows drawn for each row that comes in, which holds back whoever is ahead; null: `updates` alone says",
    )
    insert_tolerance: Positive | None = Field(
        default=None,
        description="samples_per_insert: rows drawn that either side may be ahead by; null: twice the least",
    )
    ladder_noise: Annotated[float, Gt(0), Le(1)] = Field(
        default=0.4, description="pool.mode: apex: deviation of the first worker's actions, in +-1; the others have less"
    )
    ladder_exponent: NonNegative = Field(
        default=7.0, description="pool.mode: apex: worker i of N has ladder_noise ^ (1 + i / (N - 1) * ladder_exponent)"
    )
    save_replay: bool = Field(default=False, description="keep the replay with each checkpoint, and go on with it")

    def exploration(self, worker: int, workers: int) -> float:
        """Find the deviation of a worker's actions, in +-1, by its place among all (Horgan et al., arXiv:1803.00933)."""
        return self.ladder_noise ** (1.0 + worker / max(workers - 1, 1) * self.ladder_exponent)
