"""A rehearsal: the family's protocol in training's own environment, kept so that it can be repeated without one."""

from __future__ import annotations

import json
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from embodied_rl.config import Page, override
from embodied_rl.deploy.golden import quiet, states_of
from embodied_rl.env import Env
from embodied_rl.learn.evaluate import SEEDS, evaluate, evaluation_page
from embodied_rl.learn.policy import Player, Policy
from embodied_rl.make_env import make
from embodied_rl.mdp.score import Score, score_of

#: Episodes of a rehearsal: at 2 % falls, one or two.
EPISODES = 64
#: What an entry of a model field belongs to, by how the field's name begins.
_OBJECTS = {"geom": mujoco.mjtObj.mjOBJ_GEOM, "body": mujoco.mjtObj.mjOBJ_BODY, "jnt": mujoco.mjtObj.mjOBJ_JOINT}

Rehearsal = dict[str, np.ndarray]


class _Notes:
    """Takes a score, and notes from where robots start and what they are asked for."""

    def __init__(self, score: Score) -> None:
        self._score, self.needs, self.failure = score, score.needs, score.failure
        self.wants: tuple[str, ...] = ()  # another simulation may have no feet to look at
        self.figures, self.overrides, self.limits = score.figures, score.overrides, score.limits
        self.verdict, self.near = score.verdict, score.near
        self.start: Rehearsal = {}
        self._asked: dict[str, list[Tensor]] = {}

    def begin(self, env: Any) -> None:
        qpos, qvel = states_of(env)
        self.start = {"qpos": qpos, "qvel": qvel, **_fields(env)}
        self._score.begin(env)
        self._look(env)

    def step(self, env: Any, going: Tensor) -> None:
        self._score.step(env, going)
        self._look(env)

    def asked(self, steps: int) -> Rehearsal:
        """Stack what was asked for, (steps + 1, N, ...); where all fell before, the last of it goes on."""
        return {
            name: torch.stack(values + values[-1:] * (steps + 1 - len(values))).numpy() for name, values in self._asked.items()
        }

    def _look(self, env: Any) -> None:
        for name, term in env.terms.commands.items():
            for part in term.state:
                self._asked.setdefault(f"command/{name}/{part}", []).append(getattr(term, part).clone())


def rehearse(page: Page, policy: Policy, episodes: int = EPISODES) -> Rehearsal:
    """Evaluate a policy without noise and delays, and note all that another simulation needs to do the same.

    Returns:
        `qpos` and `qvel` (N, ...), as `embodied_rl.deploy.place` has them, joints in the contract's order; `command/NAME/PART`
        (steps + 1, N, ...); model fields that differ between robots, `model/FIELD` with `model/FIELD/names`; and as JSON
        `figures`, what came out.

    Raises:
        UserError: the page has no task to be judged by.
    """
    page = override(evaluation_page(page, SEEDS[0]), [f"env.num_envs={episodes}", "env.compile=false", *quiet(page)])
    page = override(page, ["physics.engine=native", "physics.device=auto"])
    score = _Notes(score_of(page))
    env = make(page, measure=score.needs)
    try:
        figures = evaluate(env, Player(policy), score)
    finally:
        env.close()
    return score.start | score.asked(env.max_episode_length) | {"figures": np.array(json.dumps(figures))}


def _fields(env: Env) -> Rehearsal:
    """Collect what each robot's model has of its own, where its objects have names."""
    found: Rehearsal = {}
    for field, values in env.fields.values.items():
        kind = _OBJECTS.get(field.partition("_")[0])
        if kind is not None and values.dim() > 1:
            names = [mujoco.mj_id2name(env.scene.model, kind, index) or "" for index in range(values.shape[1])]
            found |= {f"model/{field}": values.double().numpy(), f"model/{field}/names": np.array(names)}
    return found


def apply_fields(model: mujoco.MjModel, rehearsal: Rehearsal, row: int) -> None:
    """Give a model what one robot of a rehearsal had of its own."""
    for name in (name for name in rehearsal if name.startswith("model/") and not name.endswith("/names")):
        field, kind = name.removeprefix("model/"), _OBJECTS[name.removeprefix("model/").partition("_")[0]]
        for index, own in enumerate(rehearsal[f"{name}/names"]):
            if own and (there := mujoco.mj_name2id(model, kind, str(own))) >= 0:
                getattr(model, field)[there] = rehearsal[name][row, index]
