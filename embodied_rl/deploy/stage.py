"""What a family's score and terminations see of robots that plain MuJoCo simulates: their environment, without ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied_rl.config import Page
from embodied_rl.deploy.place import base_state
from embodied_rl.mdp.bind import bind, numbers
from embodied_rl.mdp.finder import Finder
from embodied_rl.mdp.moment import Draw, Moment
from embodied_rl.mdp.part import PartState
from embodied_rl.mdp.trackers import Trackers
from embodied_rl.physics.kinematics import free_body
from embodied_rl.scene.terrain import FlatTerrain


class Stage:
    """N robots, each a simulation of its own; an `embodied_rl.mdp.score.Environment`.

    Args:
        page: how they are evaluated.
        contract: of the policy that drives them.
        rehearsal: what they are asked for.
        robots: the runner's simulations.
    """

    def __init__(
        self, page: Page, contract: Mapping[str, Any], rehearsal: Mapping[str, np.ndarray], robots: Sequence[Any]
    ) -> None:
        self.page, self.num_envs, self.device = page, len(robots), torch.device("cpu")
        self.step_dt, self.buffers = page.control_dt, {}
        self.max_episode_length = round(page.env.episode_s / self.step_dt)
        self._robots, self._rehearsal = robots, rehearsal
        joints, count = [joint["name"] for joint in contract["joints"]], len(contract["joints"])
        model = robots[0].model
        self._base = model.body(contract["base"]).id
        self._dofs = [int(model.joint(name).dofadr[0]) for name in joints]
        self.robot: Any = SimpleNamespace(
            joint_names=tuple(joints),
            default_joint_pos=torch.tensor([joint["default"] for joint in contract["joints"]]),
            mass=float(model.body_subtreemass[free_body(model, self._base) or self._base]),
            floating=True,
            root_qpos=0,
            root_qvel=0,
            qpos_index=torch.arange(7, 7 + count),
            qvel_index=torch.arange(6, 6 + count),
            measured=frozenset({"joint_torque"}),
        )
        self.scene: Any = SimpleNamespace(terrain=FlatTerrain())
        self.physics: Any = SimpleNamespace(
            num_envs=self.num_envs,
            qpos=torch.zeros(self.num_envs, 7 + count),
            qvel=torch.zeros(self.num_envs, 6 + count),
            joint_torque=torch.zeros(self.num_envs, count),
        )
        self.terms: Any = SimpleNamespace(commands={name: SimpleNamespace() for name in page.commands})
        self._episode: Any = SimpleNamespace(episode_length=torch.zeros(self.num_envs, dtype=torch.int64))
        self._ends, self.not_judged = [], []
        for term in bind("terminations", page.terminations, Finder(page), numbers(page)):
            if getattr(term.function, "needs", ()) or isinstance(term.function, type):
                self.not_judged.append(term.name)
            elif not term.function.time_out:
                self._ends.append(term)
        self.look(0)

    def look(self, step: int) -> None:
        """Take note of the state after so many steps, and of what is asked for now."""
        for row, robot in enumerate(self._robots):
            position, quat, linear, angular = base_state(robot.model, robot.data, self._base)
            joints = robot.data.qpos[robot.qpos], robot.data.qvel[robot.qvel]
            self.physics.qpos[row] = torch.from_numpy(np.concatenate((position, quat, joints[0])))
            self.physics.qvel[row] = torch.from_numpy(np.concatenate((linear, angular, joints[1])))
            self.physics.joint_torque[row] = torch.from_numpy(robot.data.qfrc_actuator[self._dofs])
        for name, term in self.terms.commands.items():
            for key in (key for key in self._rehearsal if key.startswith(f"command/{name}/")):
                setattr(term, key.rpartition("/")[2], torch.from_numpy(self._rehearsal[key][step]))
        self._episode.episode_length.fill_(step)

    def failed(self) -> Tensor:
        """Which robots' episodes end other than by time, or are not finite any more, bool (N,)."""
        moment = Moment(
            robot=PartState(self.robot, self.physics),
            scene=self.scene,
            episode=self._episode,
            commands=self.terms.commands,
            trackers=Trackers(),
            model={},
            step_dt=self.step_dt,
            decimation=self.page.physics.decimation,
            max_episode_length=self.max_episode_length,
            env_ids=torch.arange(self.num_envs),
            draw=Draw(),
        )
        failed = ~(self.physics.qpos.isfinite().all(1) & self.physics.qvel.isfinite().all(1))
        for term in self._ends:
            failed = failed | term.function(moment, **term.params)
        return failed
