"""What a page may say of a pool of simulator processes."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from pydantic import Field

from embodied_rl.config.model import Count, Model
from embodied_rl.config.types import Fraction, NaturalNumber, Positive


class PoolSettings(Model):
    """Simulators in processes of their own, on this machine's cores or on other machines, through Ray."""

    workers: NaturalNumber | None = Field(
        default=None,
        description="simulator processes; 0: one a node, one a core for environments in Python; null: no pool",
    )
    shard_size: Count = Field(default=64, description="environments that the policy answers at once and that move together")
    mode: Literal["sync", "overlap", "async", "gradients", "apex"] = Field(
        default="sync",
        description="what happens while the learner updates; gradients: workers send those in place of data; apex: they fill the "
        "replay of train.learner: sac",
    )
    inference: Literal["local", "central"] = Field(default="local", description="where the policy is: in the workers or here")
    inference_wait_s: Positive | None = Field(
        default=None,
        description="central: a batch is answered once its first observations have waited for so long [s]; null: once all are in",
    )
    address: str = Field(
        default="local",
        description="local: a Ray of its own on 127.0.0.1; HOST:PORT or auto: a cluster's; none: no Ray, this process steps "
        "the environments itself, to the same bits",
    )
    on_crash: Literal["replay", "mask", "raise"] = Field(
        default="replay", description="a lost worker's part of a rollout: collected again to the bit, left out, or the end"
    )
    snapshot_interval: Count = Field(default=1, description="iterations between the snapshots that a replay begins with")
    min_valid: Fraction = Field(default=0.5, description="a rollout with a smaller valid share is not learned from")
    timeout_s: Positive = Field(default=300.0, description="a worker that is silent for so long is lost [s]")
    start_timeout_s: Positive = Field(default=120.0, description="the same for one that is starting [s]")
    deadline_share: Annotated[float, Gt(0), Le(1)] | None = Field(
        default=None, description="once this share of the shards is in, stragglers are hurried; null: they are waited for"
    )
    deadline_factor: Annotated[float, Ge(1)] = Field(
        default=1.5, description="times the time that share took, then stragglers give what they have"
    )
    grace_s: Positive = Field(default=5.0, description="a straggler that does not answer for so long is lost [s]")
    max_restarts: NaturalNumber = Field(
        default=3, description="restarts of one worker within restart_window_s before the run stops"
    )
    spares: NaturalNumber = Field(default=1, description="processes that wait, loaded, to take a lost worker's place at once")
    restart_window_s: Positive = Field(default=300.0, description="see max_restarts [s]")
    max_staleness: Count = Field(
        default=4, description="async, gradients: versions that what comes may be behind before it is thrown away"
    )
    batch_share: Annotated[float, Gt(0), Le(1)] = Field(default=0.5, description="async: share of the shards in a rollout")
    lag: Annotated[int, Ge(0), Le(1000)] = Field(
        default=0, description="sync: versions that the policy which acts is behind, as an experiment; 0: none"
    )

    @property
    def is_stale(self) -> bool:
        """Whether an older policy may have acted than the one that learns."""
        return self.mode in ("overlap", "async") or self.lag > 0

    @property
    def has_processes(self) -> bool:
        """Whether processes of a pool step the environments; else the learner's process does."""
        return self.workers is not None and self.address != "none"
