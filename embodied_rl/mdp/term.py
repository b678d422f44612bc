"""How a term declares itself: one decorator per section of the page.

A term is a function or a small class.  Its keyword-only parameters are the schema of its YAML entry: the config reads them
from the source with `ast`, so that a page can be checked without importing torch.  The decorator adds what a signature
cannot say: what the scene must measure for it (`needs`) and how an observation behaves under left-right reflection
(`mirror`).

    @reward(needs=("foot_contact",))
    def foot_slip(env, *, contact_force: float = 1.0) -> Tensor:
        "sum_f contact_f |v_xy,f|^2"

Numbers that may change during a run arrive as tensors: every `float` and tuple-of-float parameter is a 0-d or 1-d float32
device tensor living in `env.params`; `int`, `bool`, `str` and `Literal` parameters arrive as Python values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

T = TypeVar("T", bound=Callable)

#: What a term may ask the scene to measure: `foot_contact` (flags), `foot_frames` (positions and velocities),
#: `foot_air_time`, `joint_torque`, or `contact:{group}` (flags of a body group, named by the term's parameter `group`).
Need = str

#: How an observation transforms under reflection through the robot's xz plane.
Mirror = Literal["scalar", "vector", "pseudovector", "joints", "feet", "velocity_command", "phase"]


def _declare(kind: str, **facts: object) -> Callable[[T], T]:
    def mark(term: T) -> T:
        term.term_kind = kind
        for name, value in facts.items():
            setattr(term, name, value)
        return term

    return mark


def action(*, needs: tuple[Need, ...] = ()) -> Callable[[T], T]:
    """An action term: a class that turns policy outputs (num_envs, size) into controls."""
    return _declare("action", needs=needs)


def observation(*, mirror: Mirror, needs: tuple[Need, ...] = ()) -> Callable[[T], T]:
    """An observation term: `(env, *, ...) -> (num_envs, size)`."""
    return _declare("observation", mirror=mirror, needs=needs)


def command(*, needs: tuple[Need, ...] = ()) -> Callable[[T], T]:
    """A command term: a class that samples and resamples what the policy is asked to do."""
    return _declare("command", needs=needs)


def reward(*, needs: tuple[Need, ...] = (), floored: bool = True) -> Callable[[T], T]:
    """A reward term: `(env, *, ...) -> (num_envs,)`, multiplied by the entry's `weight`.

    `env.reward_floor` bounds the sum of the terms; one that is not `floored` is added after it, so that the floor cannot
    hide it.
    """
    return _declare("reward", needs=needs, floored=floored)


def termination(*, time_out: bool = False, needs: tuple[Need, ...] = ()) -> Callable[[T], T]:
    """A termination term: `(env, *, ...) -> (num_envs,)` bool.  `time_out` ends are truncations: they bootstrap."""
    return _declare("termination", time_out=time_out, needs=needs)


def event(
    *, mode: Literal["startup", "reset", "interval"], fields: tuple[str, ...] = (), needs: tuple[Need, ...] = ()
) -> Callable[[T], T]:
    """An event term `(env, draft, *, ...)`: changes the robot at start-up, at reset, or now and then.

    `fields` are the model fields that it randomizes; they get per-simulation values.
    """
    return _declare("event", mode=mode, fields=fields, needs=needs)


def curriculum() -> Callable[[T], T]:
    """A curriculum term: `(params, iteration, *, ...) -> None`, run once before each rollout, outside the step.

    It changes tensors of `params` (`env.params`) in place, and is a function of the iteration alone, so that a resumed run
    goes on as it would have.
    """
    return _declare("curriculum")


def score(*, needs: tuple[Need, ...] = ()) -> Callable[[T], T]:
    """Declare the one class of a task family that judges its policies: see `embodied_rl.mdp.score.Score`.

    Its keyword-only parameters are the schema of the page's section `score`; they arrive as Python values.
    """
    return _declare("score", needs=needs)
