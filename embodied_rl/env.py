"""The environment: one step of thousands of robots, on one screen.

`env` knows the Physics protocol and never an engine.  Nothing in a step reads a tensor on the host, so that on a GPU the whole
step is one CUDA graph; on the CPU it is two compiled functions beside the physics threads.

Legend: N envs, A actions, R rewards, O observations.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mujoco
import torch
from torch import Tensor

from embodied_rl import random
from embodied_rl.config.page import Page
from embodied_rl.cuda_graph import WARMUP, try_to_capture
from embodied_rl.errors import UserError
from embodied_rl.mdp.bind import Terms
from embodied_rl.mdp.draft import Draft
from embodied_rl.mdp.moment import Draw, Moment
from embodied_rl.mdp.part import PartState
from embodied_rl.physics.protocol import Physics
from embodied_rl.scene import Scene
from embodied_rl.vector_env import ActionSpace, Step

#: Buffers that are zero when an episode begins.
_PER_EPISODE = ("episode_length", "episode_rewards", "actions", "previous_actions", "foot_air_time")


class Env:
    """N environments of one page.

    Args:
        page: the task.
        scene: its model.
        physics: the engine, holding N simulations of that model.
        terms: the page's terms, bound.
        env_ids: global ids of the rows, int64 (N,); they key all randomness.
        compiler: wraps the two halves of the step, `torch.compile` or the identity.
    """

    def __init__(
        self,
        page: Page,
        scene: Scene,
        physics: Physics,
        terms: Terms,
        env_ids: Tensor,
        compiler: Callable = lambda f: f,
    ) -> None:
        self.page, self.scene, self.physics, self.terms = page, scene, physics, terms
        self.num_envs, self.device, self.env_ids = len(env_ids), physics.device, env_ids
        self.robot, self.params, self.action = terms.robot, terms.params, terms.action
        self.step_dt = page.control_dt
        self.max_episode_length = round(page.env.episode_s / self.step_dt)
        self._model_fields = {field: physics.expand(field) for field in terms.model_fields}
        self._draft = Draft(self._zeros(physics.qpos.shape[1]), self._zeros(physics.qvel.shape[1]), {})
        self._touched = self._zeros().bool()
        self._keys = {half: random.stream_key(page.env.seed, half, self.device) for half in ("step", "observe", "phase")}
        # until the first pass has counted them, zeros stand for the random numbers that each half of the step draws
        self._block_sizes: dict[str, int] = {}
        self.physics_seconds = 0.0
        self._allocate()
        self._startup()
        self.reset()
        self._check_shapes()
        self._after_physics, self._observe = compiler(self._after_physics), compiler(self._observe)
        if self.captured:  # launches count there; on the CPU compiling it takes longer than it ever saves
            self._act = compiler(self._act)
        self._inputs, self._run = self._zeros(self.num_actions), None

    # ------------------------------------------------------------------------------------------------------- the step

    def step(self, actions: Tensor) -> Step:
        """Advance all environments by one control step.

        The order, and why: actions -> physics, which hands out rows that blew up as reset states (flagged `unstable`), so
        that nothing that is not finite reaches a term -> kinematics -> terminations and rewards of the state that the
        actions led to -> the critic's terminal observation, before the reset hides it -> commands and reset events for the
        rows that are done, interval events for those that go on -> one masked write -> observations of the state that the
        next actions will meet.

        Args:
            actions: (N, A), the policy's outputs.

        Returns:
            The step's results; they live in the environment's buffers until the next step.
        """
        if self._run is None:
            self._run = self.capture(self._step)
        self._inputs.copy_(actions)
        self._run()
        return self.result

    @property
    def captured(self) -> bool:
        """Whether steps are replayed from a CUDA graph."""
        return self.page.physics.graph and self.physics.capturable and self.device.type == "cuda"

    @property
    def result(self) -> Step:
        """What the last step left behind."""
        b = self.buffers
        return Step(self.obs, b["reward"], b["terminated"], b["truncated"], self.final_obs, b["valid"])

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """`function`, which calls `advance`, as one CUDA graph where there is a device for it; else as it is.

        Where the capture fails, a line says why, and it stays as it is.
        """
        if not self.captured:
            return function
        rows = torch.arange(self.num_envs, device=self.device)
        state, totals = self.snapshot(rows), self._totals.clone()
        for _ in range(WARMUP):
            function()
        graph = try_to_capture(function, self.device, self.physics)
        self.physics.capturable = graph is not None
        self.restore(rows, state)
        self._totals.copy_(totals)
        self.physics.drain_unstable()  # those steps happen again, and report then
        self.physics.drain_overflow()
        return graph or function

    def _step(self) -> None:
        self.advance(self._inputs)

    def advance(self, actions: Tensor) -> None:
        """`step` operation by operation, for those who capture it together with their own."""
        controls = self._act(actions)
        started = time.perf_counter()
        self.physics.step(controls)
        self.physics_seconds += time.perf_counter() - started
        if self.terms.kinematic:
            self.physics.refresh()
        self._after_physics()
        self._apply()
        self._observe()

    def reset(self) -> dict[str, Tensor]:
        """Begin a new episode in every environment; the first observations.

        With `random_episode_phase` the episodes begin at random times of their length, so that they do not all end at once.
        """
        b = self.buffers
        b["done"].fill_(True)
        drawn = self._draw("step")
        self._restart(self._view(drawn))
        self._apply()
        if self.page.env.random_episode_phase:
            phase = random.uniform(self._keys["phase"], self.env_ids, b["age"], 1)[:, 0]
            b["episode_length"].copy_((phase * self.max_episode_length).long())
        observed = self._observe()
        if not self._block_sizes:
            self._block_sizes = {"step": drawn.used, "observe": observed}
            return self.reset()
        return self.obs

    def controls(self) -> Tensor:
        """What the engine is told by the last actions, (N, nu) or (N, decimation, nu)."""
        return self.action.controls(self._view(Draw()), self.page.physics.decimation)

    def _act(self, actions: Tensor) -> Tensor:
        """Note the actions; what the engine is told by them."""
        b = self.buffers
        b["previous_actions"].copy_(b["actions"])
        b["actions"].copy_(actions.clamp(-self.action.clip, self.action.clip))
        b["previous_joint_vel"].copy_(self.physics.qvel[:, self.robot.qvel_index])
        return self.controls()

    def _after_physics(self) -> None:
        b, terms = self.buffers, self.terms
        b["age"].add_(1)
        b["episode_length"].add_(1)
        view = self._view(self._draw("step"))
        unstable = self.physics.unstable
        ends = [(t.function.time_out, t.function(view, **t.params)) for t in terms.terminations]
        terminated = unstable.clone()
        truncated = torch.zeros_like(unstable)
        for time_out, end in ends:
            terminated, truncated = (terminated, truncated | end) if time_out else (terminated | end, truncated)
        truncated = truncated & ~terminated
        done = terminated | truncated
        view.terminated = terminated & ~unstable
        b["terminated"].copy_(terminated)
        b["truncated"].copy_(truncated)
        b["valid"].copy_(~unstable)
        b["done"].copy_(done)
        self._reward(view)
        self._count(view, done, [end for _, end in ends])
        for group in self.groups:
            if group.name in self.final_obs:
                self.final_obs[group.name].copy_(group.compute(view, noisy=False, fresh=None))
        self._restart(view)

    def _reward(self, view: Moment) -> None:
        """weights . terms (x step_dt), at least `reward_floor`, + the terms that no floor hides."""
        b, settings = self.buffers, self.page.env
        alive = (~self.physics.unstable).float()
        scale = self.step_dt if settings.reward_scale_dt else 1.0
        floored = unfloored = torch.zeros_like(alive)
        columns = []
        for term in self.terms.rewards:
            value = term.function(view, **term.params) * self.params[f"rewards.{term.name}.weight"] * (scale * alive)
            columns.append(value)
            if term.function.floored:
                floored = floored + value
            else:
                unfloored = unfloored + value
        if settings.reward_floor is not None:
            floored = floored.clamp(min=settings.reward_floor)
        b["reward"].copy_(floored + unfloored)
        b["reward_terms"].copy_(torch.stack((*columns, b["reward"]), dim=-1))
        b["episode_rewards"].add_(b["reward_terms"])
        if self.terms.air_time:
            airborne = self.physics.sensors["foot_contact"] == 0
            b["foot_air_time"].copy_((b["foot_air_time"] + self.step_dt) * airborne)

    def _count(self, view: Moment, done: Tensor, ends: list[Tensor]) -> None:
        """Add this step to the iteration's totals, which are read once an iteration."""
        b, ended = self.buffers, done.float()
        columns = [
            torch.ones_like(ended),
            self.physics.unstable.float(),
            ended,
            b["terminated"].float(),
            b["episode_length"] * ended,
        ]
        columns += [(end & done).float() for end in ends]
        for command in self.terms.commands.values():
            columns += command.errors(view).values()
        totals = torch.cat((torch.stack(columns, dim=-1), b["episode_rewards"] * ended[:, None]), dim=-1)
        self._totals.add_(totals.sum(0))

    def _restart(self, view: Moment) -> None:
        """Commands, reset events and interval events: the draft of the rows that change."""
        b, terms, physics, done = self.buffers, self.terms, self.physics, self.buffers["done"]
        for command in terms.commands.values():
            command.update(view, done)
        self.action.update(view, done)
        fresh = Draft(self.robot.default_qpos.expand_as(physics.qpos), torch.zeros_like(physics.qvel), dict(self._model_fields))
        for term in terms.events["reset"]:
            term.function(view, fresh, **term.params)
        going = Draft(physics.qpos, physics.qvel, {})
        touched = done
        for term in terms.events["interval"]:
            touched = touched | term.function(view, going, **term.params)
        self._touched.copy_(touched)
        self._draft.qpos.copy_(_where(done, fresh.qpos, going.qpos))
        self._draft.qvel.copy_(_where(done, fresh.qvel, going.qvel))
        for name in terms.reset_fields:
            self._model_fields[name].copy_(_where(done, fresh.model[name], self._model_fields[name]))
        if terms.foot_friction:
            b["foot_friction"].copy_(self._model_fields["geom_friction"][:, self._feet, 0])
        for name in _PER_EPISODE:
            b[name].copy_(_where(done, torch.zeros_like(b[name]), b[name]))

    def _apply(self) -> None:
        """Write the draft into the engine: finished rows start anew, pushed rows get their new velocity."""
        done = self.buffers["done"]
        self.physics.reset(done)
        self.physics.write(self._touched, qpos=self._draft.qpos, qvel=self._draft.qvel)
        if self.terms.reset_fields:
            self.physics.write(done, **{name: self._model_fields[name] for name in self.terms.reset_fields})
        if self.terms.kinematic_obs:
            self.physics.refresh()

    def _observe(self) -> int:
        """Fill the observations; how many random numbers that took."""
        view = self._view(self._draw("observe"))
        for group in self.groups:
            self.obs[group.name].copy_(group.compute(view, noisy=True, fresh=self.buffers["done"]))
        return view.draw.used

    # ------------------------------------------------------------------------------------------------ what it consists of

    def _allocate(self) -> None:
        """Every mutable tensor of the environment, registered by name with leading dimension N."""
        terms, joints = self.terms, len(self.robot.joint_names)
        feet = len(self.scene.robot.feet)
        self._feet = torch.tensor(self.scene.first_foot_geoms, dtype=torch.int64, device=self.device)
        self.buffers = b = {name: self._zeros().long() for name in ("age", "episode_length")}
        b |= {name: self._zeros().bool() for name in ("terminated", "truncated", "done", "valid")}
        b |= {"reward": self._zeros(), "reward_terms": self._zeros(len(terms.rewards) + 1)}
        b |= {"episode_rewards": self._zeros(len(terms.rewards) + 1)}
        b |= {
            "previous_joint_vel": self._zeros(joints),
            "foot_air_time": self._zeros(feet),
            "foot_friction": self._zeros(feet),
        }
        for owner in (self.action, *terms.commands.values()):
            b |= {name: self._zeros(*((width,) if width else ())) for name, width in owner.state.items()}
        size = self.action.size(self._view(Draw()))
        self.num_actions, self.action_space = size, ActionSpace(size)
        b |= {"actions": self._zeros(size), "previous_actions": self._zeros(size)}
        self.groups = terms.groups(self._view(Draw()))
        for group in self.groups:
            b |= {name: self._zeros(*shape) for name, shape in group.state.items()}
        self.obs = {group.name: self._zeros(group.size) for group in self.groups}
        self.final_obs = {name: self._zeros(self.obs[name].shape[1]) for name in self.page.env.final_obs_groups}
        errors = [f"error/{name}" for c in terms.commands.values() for name in c.errors(self._view(Draw()))]
        ends = [f"termination/{term.name}" for term in terms.terminations]
        rewards = [f"reward/{term.name}" for term in terms.rewards]
        self._total_names = [
            "steps",
            "unstable",
            "episodes",
            "terminated",
            "episode_length",
            *ends,
            *errors,
            *rewards,
            "reward/total",
        ]
        self._totals = torch.zeros(len(self._total_names), device=self.device)

    def _check_shapes(self) -> None:
        """Call every reward and termination once, so that a wrong shape is named here and not broadcast."""
        view = self._view(Draw())
        view.terminated = self.buffers["terminated"]
        for section, terms in (("rewards", self.terms.rewards), ("terminations", self.terms.terminations)):
            for term in terms:
                value = term.function(view, **term.params)
                wanted = torch.bool if section == "terminations" else torch.float32
                if value.shape != (self.num_envs,) or value.dtype != wanted:
                    got = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
                    kind = str(wanted).removeprefix("torch.")
                    raise UserError(f"{section}.{term.name}: a term returns {kind} ({self.num_envs},), got {got}")

    def _startup(self) -> None:
        """Randomize what is drawn once per robot, outside any graph."""
        if not self.terms.events["startup"]:
            return
        draft = Draft(self.physics.qpos, self.physics.qvel, dict(self._model_fields))
        key = random.stream_key(self.page.env.seed, "startup", self.device)
        view = self._view(Draw(random.uniform(key, self.env_ids, 0, 512)))
        for term in self.terms.events["startup"]:
            term.function(view, draft, **term.params)
        everyone = torch.ones_like(self._touched)
        self.physics.write(everyone, **draft.model)
        self.physics.set_const(everyone)
        for name, value in draft.model.items():
            self._model_fields[name].copy_(value)

    def advance_curricula(self, iteration: int) -> None:
        """Set the parameters that a curriculum moves to what they are in this iteration."""
        for term in self.terms.curricula:
            term.function(self.params, iteration, **term.params)

    def drain_totals(self) -> dict[str, float]:
        """Sums over all steps since the last call, by name; the one place where the host reads metrics."""
        totals = dict(zip(self._total_names, self._totals.tolist(), strict=True))
        self._totals.zero_()
        return totals | {f"overflow/{setting}": float(rows) for setting, rows in self.physics.drain_overflow().items()}

    def drain_unstable(self) -> list[dict]:
        """What is known of simulations that blew up since the last call: see `Physics.drain_unstable`."""
        return self.physics.drain_unstable()

    def snapshot(self, rows: Tensor) -> dict[str, Tensor]:
        """All that the rows' future depends on, exact on the same engine; rows int64 (R,), every tensor (R, ...)."""
        state = {f"physics.{name}": tensor for name, tensor in self.physics.snapshot(rows).items()}
        return state | {name: tensor[rows].clone() for name, tensor in self._registered().items()}

    def restore(self, rows: Tensor, state: dict[str, Tensor]) -> None:
        """The inverse of `snapshot`.

        Raises:
            ValueError: the snapshot is of another page.
        """
        registered = self._registered()
        own = {name for name in state if not name.startswith("physics.")}
        if own != set(registered):
            odd = sorted(own ^ set(registered))
            raise ValueError(f"the snapshot is of another page: {', '.join(odd[:3])} differ")
        odd = [name for name, tensor in registered.items() if state[name].shape[1:] != tensor.shape[1:]]
        if odd:
            raise ValueError(f"the snapshot is of another page: the sizes of {', '.join(odd[:3])} differ")
        physics = {name.removeprefix("physics."): v for name, v in state.items() if name.startswith("physics.")}
        self.physics.restore(rows, physics)
        for name, tensor in registered.items():
            tensor[rows] = state[name].to(tensor.device)

    def render_state(self, row: int) -> tuple[mujoco.MjModel, Any, Any]:
        """The model to draw and one robot's qpos and mocap poses, as NumPy arrays, on every engine."""
        model = self.scene.render_model
        return model, self.physics.qpos[row].cpu().double().numpy(), None

    def mirror_maps(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Index and sign of the left-right reflection of each observation group and of `actions`."""
        mirrors = self.terms.mirrors()
        maps = {group.name: group.mirror_map(mirrors) for group in self.groups}
        return maps | {"actions": mirrors["joints"]}

    def close(self) -> None:
        """Free the engine."""
        self.physics.close()

    def _registered(self) -> dict[str, Tensor]:
        fields = {f"model.{name}": tensor for name, tensor in self._model_fields.items()}
        return self.buffers | fields | {f"obs.{name}": tensor for name, tensor in self.obs.items()}

    def _view(self, draw: Draw) -> Moment:
        return Moment(
            robot=PartState(self.robot, self.physics),
            scene=self.scene,
            buffers=self.buffers,
            commands=self.terms.commands,
            step_dt=self.step_dt,
            max_episode_length=self.max_episode_length,
            draw=draw,
        )

    def _draw(self, half: str) -> Draw:
        if not self._block_sizes:
            return Draw(self._zeros(1).expand(-1, 4096))
        size = self._block_sizes[half]
        return Draw(random.uniform(self._keys[half], self.env_ids, self.buffers["age"], size))

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(self.num_envs, *shape, device=self.device)


def _where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """New values in the rows, bool (N,); old ones elsewhere; both (N, ...)."""
    return torch.where(rows.view(-1, *[1] * (old.dim() - 1)), new, old)
