"""How a term declares itself: one decorator per section of the page.

A term is a function or a small class.  Its keyword-only parameters are the schema of its YAML entry: the config reads them
from the source with `ast`, so that a page can be checked without importing torch.  The decorator adds what a signature
cannot say: what must be measured for it (`needs`) and how its value behaves under left-right reflection (`mirror`).

    @reward(needs=("foot_contact", "foot_frames"))
    def foot_slip(env, *, contact_force: float = 1.0) -> Tensor:
        "sum_f contact_f |v_xy,f|^2"

A class is made once, with the robot's constants (`embodied_rl.mdp.part.Part`) if it has an `__init__`, and its parameters; it is
then called as a function is.  What it remembers it declares, and finds under the same names among its attributes:

    @reward()
    class drift:
        "|integral of v_y dt|"

        state = {"way": State()}  # (N,), zero when an episode begins

        def update(self, env): self.way.add_(env.step_dt * env.robot.lin_vel_yaw[:, 1])

        def __call__(self, env): return self.way.abs()

Three methods are called where a class of any section has them: `update(env)` after the physics, before ends and rewards;
`resample(env, done)` when rows begin anew, before reset events; `settle(env)` when the new state is written, before the
observations.  Each of them changes its tensors in place, with masks.

Numbers that may change during a run arrive as tensors: every `float` and tuple-of-float parameter is a 0-d or 1-d float32
device tensor living in `env.params`, one of type `PerGroup` may be a 1-d one with a number per joint; `int`, `bool`, `str` and
`Literal` parameters arrive as Python values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from embodied_rl.errors import UserError
from embodied_rl.mdp.state import State
from embodied_rl.problems import article, did_you_mean

T = TypeVar("T", bound=Callable)

#: What a term may ask for: of the scene `foot_contact` (flags), `foot_touchdown` (how often they begin in a control step, at the
#: price of looking at every physics step), `foot_frames` (positions and velocities), `foot_orientation`, `joint_torque`, or
#: `contact:{group}` (flags of a body group, named by the term's parameter `group`); a tracker by its name
#: (`embodied_rl.mdp.trackers`); `model:FIELD`, a model field of MuJoCo's for `env.model`.
Need = str

#: How a value transforms under reflection through the robot's xz plane, by name.
MIRRORS = ("scalar", "vector", "pseudovector", "joints", "feet", "actions")

#: When an event happens.
EventMode = Literal["startup", "reset", "interval", "iteration"]

#: One of `MIRRORS`, or a function `(robot, **params) -> (index, sign)`: mirrored = value[index] * sign.
Mirror = str | Callable[..., tuple[Sequence[int], Sequence[float]]]


class Command(Protocol):
    """A command term: what the policy is asked to do.

    It draws in `resample` alone.  What depends on the state that an episode begins with, it makes in `settle`.
    """

    size: int
    """Numbers of the command."""
    names: Sequence[str]
    """What each of them is, with its unit."""
    state: dict[str, State]
    """What it remembers; `command`, (N, size), is what is asked for now."""
    command: Tensor

    def resample(self, env: Any, done: Tensor) -> None:
        """Draw anew where the time is up or an episode begins, done (N,) bool."""
        ...

    def errors(self, env: Any) -> dict[str, Tensor]:
        """How far the robots are from what is asked for, by name, each (N,)."""
        ...

    # It may have, as a reset event may, shares(self, env) -> list[embodied_rl.mdp.totals.Share].

    def hold(self, values: Sequence[float] | None) -> None:
        """Ask all robots for these numbers and nothing else from now on; None: draw again."""
        ...

    def contract(self) -> dict[str, Any]:
        """Say what a robot must know of it: plain values, or tensors of numbers, by name.

        `ranges`, the least and greatest of each number in training, and `rest`, a command that may be given whatever they are,
        bound what a robot is asked for.
        """
        ...


class Action(Protocol):
    """An action term: what some of the policy's outputs do to some of the joints."""

    control: Literal["position", "velocity"]
    """What its controls are targets of."""
    mirror: Mirror
    joints: Sequence[int]
    """The joints that it drives, counted in robot.yaml's order; one output each."""
    clip: Tensor
    """Bound of its outputs, either way."""

    def controls(self, env: Any, actions: Tensor, previous_actions: Tensor) -> Tensor:
        """Return targets (N, joints), or (N, decimation, joints) with a row per physics step."""
        ...

    def contract(self) -> dict[str, Any]:
        """Say what a robot must know of it: plain values, or tensors of numbers, by name."""
        ...


def check_answer(own: str, value: Any, num_envs: int, dtype: torch.dtype, size: int | None = None) -> None:
    """Check what a term returned; nothing is read from the device.

    Args:
        own: the term, by its path.
        value: its answer.
        num_envs: N.
        dtype: what its type has to be.
        size: of an answer (N, size); -1: any; None: the answer is (N,).

    Raises:
        UserError: it is something else; one line.
    """
    fits = isinstance(value, Tensor) and value.dtype == dtype and value.dim() == 1 + (size is not None) and len(value) == num_envs
    if fits and (size in (None, -1) or value.shape[1] == size):
        return
    wanted = f"({num_envs},)" if size is None else f"({num_envs}, {'size' if size == -1 else size})"
    raise UserError(f"{own}: a term returns {str(dtype).removeprefix('torch.')} {wanted}, got {described(value)}")


def described(value: Any) -> str:
    """Say what a term returned, in a line."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, bool | int | float | str):
        return f"{value!r}, {article(type(value).__name__)}"
    return "None" if value is None else article(type(value).__name__)


def _declare(kind: str, **facts: object) -> Callable[[T], T]:
    def mark(term: T) -> T:
        is_class = inspect.isclass(term)
        term.term_kind = kind
        for name, value in facts.items():
            # a function that is a class's attribute would be taken for its method
            setattr(term, name, staticmethod(value) if is_class and callable(value) else value)
        return term

    return mark


def _known(mirror: Mirror) -> Mirror:
    if mirror not in MIRRORS and not callable(mirror):
        near = did_you_mean(mirror, MIRRORS) or f"; allowed: {', '.join(MIRRORS)}, or a function"
        raise UserError(f"a term's mirror: no {mirror!r}{near}")
    return mirror


def action(*, mirror: Mirror, needs: tuple[Need, ...] = ()) -> Callable[[T], T]:
    """Declare an action term: a class, see `Action`."""
    return _declare("action", mirror=_known(mirror), needs=needs)


def observation(
    *, mirror: Mirror, needs: tuple[Need, ...] = (), privileged: bool = False, coarse: bool = False
) -> Callable[[T], T]:
    """Declare an observation term: `(env, *, ...) -> (num_envs, size)`.

    A `privileged` one is nothing that a robot measures: it is for critics, and whoever shows it to an actor is warned.  The
    noise of a `coarse` one, of many numbers, has 256 values.
    """
    return _declare("observation", mirror=_known(mirror), needs=needs, privileged=privileged, coarse=coarse)


def command(*, needs: tuple[Need, ...] = ()) -> Callable[[T], T]:
    """Declare a command term: a class, see `Command`."""
    return _declare("command", needs=needs)


def reward(*, needs: tuple[Need, ...] = (), floored: bool = True) -> Callable[[T], T]:
    """Declare a reward term: `(env, *, ...) -> (num_envs,)`, multiplied by the entry's `weight`.

    `env.reward_floor` bounds the sum of the terms; one that is not `floored` is added after it, so that the floor cannot
    hide it.
    """
    return _declare("reward", needs=needs, floored=floored)


def termination(*, time_out: bool = False, needs: tuple[Need, ...] = ()) -> Callable[[T], T]:
    """Declare a termination term: `(env, *, ...) -> (num_envs,)` bool.  `time_out` ends are truncations: they bootstrap."""
    return _declare("termination", time_out=time_out, needs=needs)


def event(
    *,
    mode: EventMode | None = None,
    fields: tuple[str, ...] = (),
    needs: tuple[Need, ...] = (),
) -> Callable[[T], T]:
    """Declare an event term `(env, draft, *, ...)`: changes the robot at start-up, at reset, now and then, or for an iteration.

    `fields` are the model fields that it changes; they get per-simulation values.  An interval's returns the rows that it
    changed, bool (N,).  A class may have the `mode` among its attributes instead.
    """
    facts = {"fields": fields, "needs": needs} | ({"mode": mode} if mode else {})
    return _declare("event", **facts)


def patch() -> Callable[[T], T]:
    """Declare a kind of ground: `(patch, difficulty, *, ...) -> heights`, see `embodied_rl.mdp.patches`.

    Called once for each row of the grid, with its difficulty in [0, 1] and parameters as Python values: the heights [m] of the
    patch's points, float64 (P, P), finite, 0 along the edge.
    """
    return _declare("patch")


def curriculum() -> Callable[[T], T]:
    """Declare a curriculum term: `(params, statistics, iteration, *, ...) -> None`, run by the trainer before each iteration.

    It changes numbers of the page (`params`, by dotted path, on the CPU) for all robots of all processes: see `Curricula`,
    which also says what `statistics` are.  Beside its arguments it depends on nothing, so that every process computes the
    same and a resumed run goes on as it would have.  What it has to remember is a `float` parameter of its own, which is a
    number of the page like any other: `params["curriculum.NAME.level"]`.
    """
    return _declare("curriculum")


def score(*, needs: tuple[Need, ...] = (), wants: tuple[Need, ...] = ()) -> Callable[[T], T]:
    """Declare the one class of a task family that judges its policies: see `embodied_rl.mdp.score.Score`.

    Its keyword-only parameters are the schema of the page's section `score`; they arrive as Python values.  What it `wants` is
    measured where it can be, of robots that have feet and in our own environments, and `env.robot.measured` says so.
    """
    return _declare("score", needs=needs, wants=wants)
