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
from embodied_rl.blocks import Rowwise
from embodied_rl.config.page import Page
from embodied_rl.cuda_graph import WARMUP, try_to_capture
from embodied_rl.errors import UserError
from embodied_rl.mdp.bind import Terms
from embodied_rl.mdp.draft import Draft
from embodied_rl.mdp.fields import ModelFields
from embodied_rl.mdp.finder import naming_own
from embodied_rl.mdp.moment import Draw, Episode, Moment, counting
from embodied_rl.mdp.part import PartState
from embodied_rl.mdp.quarantine import Quarantine, names_of
from embodied_rl.mdp.state import Memory, check_same_parts, where
from embodied_rl.mdp.totals import Totals, total_names
from embodied_rl.physics.protocol import Physics, tensors_of
from embodied_rl.scene import Scene
from embodied_rl.vector_env import ActionSpace, Step, check_actions
from embodied_rl.waiting import Waiting


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
        self.page, self.scene, self.physics, self.terms = page, scene.on(physics.device), physics, terms
        self.num_envs, self.device, self.env_ids = len(env_ids), physics.device, env_ids
        self.robot, self.params = terms.robot, terms.params
        self.step_dt = page.control_dt
        self.max_episode_length = round(page.env.episode_s / self.step_dt)
        self.fields = ModelFields(physics, terms.model_fields, terms.drawn)
        self._draft = Draft(self._zeros(physics.qpos.shape[1]), self._zeros(physics.qvel.shape[1]), {})
        self._touched = self._zeros().bool()
        self._keys = {half: random.stream_key(page.env.seed, half, self.device) for half in ("step", "observe", "phase")}
        # until the first pass has counted them, zeros stand for the random numbers that each half of the step draws
        self._block_sizes: dict[str, int] = {}
        self.physics_seconds = 0.0
        with naming_own(page.name):
            self._allocate()
            for mode in ("startup", "iteration"):
                self._randomize(mode, 0)
            self.reset()
        terms.check(self.moment(Draw()), physics, self._registered())
        own = (*self._registered().values(), *self.final_obs.values(), *self.quarantine.rows, *self._totals.rows, env_ids)
        rows = (*tensors_of(physics).values(), *own, self._draft.qpos, self._draft.qvel, self._touched)
        self._outcome, self._observe = compiler(Rowwise(self._outcome, rows)), compiler(Rowwise(self._observe, rows))
        self._add_totals = compiler(self._totals.add)
        if self.captured:  # launches count there; on the CPU compiling it takes longer than it ever saves
            self._act = compiler(self._act)
        self._inputs, self._run = self._zeros(self.num_actions), None

    # ------------------------------------------------------------------------------------------------------- the step

    def step(self, actions: Tensor) -> Step:
        """Advance all environments by one control step, as `advance` says; on a GPU one CUDA graph.

        Args:
            actions: (N, A), the policy's outputs; others are a UserError.

        Returns:
            The step's results; they live in the environment's buffers until the next step.
        """
        check_actions(actions, self._inputs.shape)
        if self._run is None:
            self._run = self.capture(lambda: self.advance(self._inputs))
        self._inputs.copy_(actions)
        self._run()
        return self.result

    def advance(self, actions: Tensor) -> None:
        """Run `step` operation by operation, for those who capture it together with their own.

        The order, and why:

        1. Act: the actions are noted and become controls.
        2. Physics.  Rows that blow up are handed out as reset states, flagged `unstable`, so that nothing that is not finite
           reaches a term.
        3. Outcome, one compiled function: memory is updated; terminations and rewards judge the state that the actions led to;
           the critic looks once more before a reset hides that state; totals; commands and reset events for the rows that are
           done, interval events for those that go on.
        4. One masked write into the engine.
        5. Look, one compiled function: memory settles, and the observations are those of the state that the next actions
           will meet.

        A row to which a term, or the policy, gives a number that is not finite is treated as one that blew up: the step that
        led there is not valid, the number goes nowhere, and a new episode begins.
        """
        with naming_own(self.page.name):
            controls = self._act(actions)
            started = time.perf_counter()
            self.physics.step(controls)
            self.physics_seconds += time.perf_counter() - started
            if self.terms.kinematic:
                self.physics.refresh()
            self._outcome()
            self._add_totals()
            self._write()
            self._observe()

    def _act(self, actions: Tensor) -> Tensor:
        """Note the actions, and make what the engine is told by them."""
        episode = self.episode
        episode.previous_actions.copy_(episode.actions)
        episode.actions.copy_(self.terms.actions.clip(actions))
        return self.controls()

    def _outcome(self) -> None:
        """All that follows from the state that the physics led to."""
        episode = self.episode
        episode.age.add_(1)
        episode.episode_length.add_(1)
        moment = self.moment(self._draw("step"))
        for update in self.terms.updates:
            update(moment)
        lost = self.physics.unstable | episode.lost | self.quarantine.look("actions", episode.actions)
        ends = self._end(moment, lost)
        told = self.terms.told(moment)
        lost = lost | self.quarantine.look("told", told.numbers)
        for group in self.groups:
            if group.name in self.final_obs:
                last = group.compute(moment, noisy=False, fresh=None)
                odd = self.quarantine.take(f"observations.{group.name}", last, self.final_obs[group.name])
                lost = lost | (odd & episode.truncated)  # who is bootstrapped from it
        lost = lost | self._reward(moment, lost)
        episode.valid.copy_(~lost)
        episode.terminated.logical_or_(lost)
        episode.truncated.logical_and_(~lost)
        episode.done.logical_or_(lost)
        self._count(ends, torch.where(lost[:, None], 0.0, told.numbers), told.cells)
        self._restart(moment)

    def _end(self, moment: Moment, lost: Tensor) -> list[Tensor]:
        """Which episodes end, and how; the answer of each termination, bool (N,)."""
        episode = self.episode
        ends = [(t.function.time_out, t.answer("terminations", moment, torch.bool)) for t in self.terms.terminations]
        terminated, truncated = lost.clone(), torch.zeros_like(lost)
        for time_out, end in ends:
            terminated, truncated = (terminated, truncated | end) if time_out else (terminated | end, truncated)
        truncated = truncated & ~terminated
        moment.terminated = terminated & ~lost
        episode.terminated.copy_(terminated)
        episode.truncated.copy_(truncated)
        episode.done.copy_(terminated | truncated)
        return [end for _, end in ends]

    def _reward(self, moment: Moment, lost: Tensor) -> Tensor:
        """weights . terms (x step_dt), at least `reward_floor`, + the terms that no floor hides; rows where they are not finite.

        Rows that are lost get none.
        """
        episode, settings = self.episode, self.page.env
        scale = self.step_dt if settings.reward_scale_dt else 1.0
        floored = unfloored = torch.zeros_like(episode.reward)
        columns = []
        for term in self.terms.rewards:
            value = term.answer("rewards", moment, torch.float32) * self.params[f"rewards.{term.name}.weight"] * scale
            columns.append(value)
            if term.function.floored:
                floored = floored + value
            else:
                unfloored = unfloored + value
        if settings.reward_floor is not None:
            floored = floored.clamp(min=settings.reward_floor)
        table = torch.stack((*columns, floored + unfloored), dim=-1)
        odd = self.quarantine.look("rewards", table, ~lost)
        episode.reward_terms.copy_(where(lost | odd, torch.zeros_like(table), table))
        episode.reward.copy_(episode.reward_terms[:, -1])
        episode.episode_rewards.add_(episode.reward_terms)
        return odd

    def _count(self, ends: list[Tensor], told: Tensor, cells: Tensor) -> None:
        """Note what this step adds to the iteration's totals."""
        episode, done, ended = self.episode, self.episode.done, self.episode.done.float()
        columns = [torch.ones_like(ended), (~episode.valid).float(), ended, episode.terminated.float()]
        columns += [episode.episode_length * ended, *((end & done).float() for end in ends)]
        counted = torch.stack(columns, dim=-1)
        self._totals.columns.copy_(torch.cat((counted, episode.episode_rewards * ended[:, None], told), dim=-1))
        self._totals.cells.copy_(cells)

    def _restart(self, moment: Moment) -> None:
        """Begin episodes where one ended: memory, commands, reset events; interval events for the others."""
        terms, physics, done = self.terms, self.physics, self.episode.done
        self.memory.begin(done)
        for resample in terms.resamples:
            resample(moment, done)
        pose = self.robot.default_qpos.expand_as(physics.qpos)
        fresh = self.fields.draft("reset", pose, torch.zeros_like(physics.qvel))
        lost, touched = torch.zeros_like(done), done
        for term in terms.events["reset"]:
            term.happen(moment, fresh)
            lost = lost | self.quarantine.look(f"events.{term.name}", self.fields.drawn_in("reset", fresh), done)
        fresh.stand_on(self.scene.terrain, self.robot)
        going = Draft(physics.qpos, physics.qvel, self.fields.values)
        for term in terms.events["interval"]:
            changed = term.happen(moment, going)
            lost = lost | self.quarantine.look(f"events.{term.name}", self.fields.drawn_in("interval", going), changed & ~done)
            touched = touched | changed
        self._touched.copy_(touched)
        # what cannot be is not written: those rows stand in the default pose, and end with the next step
        self.episode.lost.copy_(lost)
        self._draft.qpos.copy_(where(lost, pose, where(done, fresh.qpos, going.qpos)))
        self._draft.qvel.copy_(where(lost, torch.zeros_like(fresh.qvel), where(done, fresh.qvel, going.qvel)))
        self.fields.take(done, lost, fresh, going)

    def _write(self) -> None:
        """Write the draft into the engine: finished rows start anew, pushed rows go on as they were pushed."""
        done = self.episode.done
        self.physics.reset(done)
        self.physics.write(self._touched, qpos=self._draft.qpos, qvel=self._draft.qvel)
        self.fields.write(self._touched)
        if self.terms.kinematic_obs:
            self.physics.refresh()

    def _observe(self) -> int:
        """Let memory settle and fill the observations; how many random numbers that took."""
        moment = self.moment(self._draw("observe"))
        for settle in self.terms.settles:
            settle(moment)
        episode = self.episode
        lost = episode.lost
        for name, command in self.terms.commands.items():
            lost = lost | self.quarantine.look(f"commands.{name}", command.command)
        for group in self.groups:
            values = group.compute(moment, noisy=True, fresh=episode.done)
            lost = lost | self.quarantine.take(f"observations.{group.name}", values, self.obs[group.name])
        episode.lost.copy_(lost)
        # a step to where nothing can be seen led nowhere; the episode of a row that is done had ended before
        cut = lost & ~episode.done
        episode.valid.logical_and_(~cut)
        episode.terminated.logical_or_(cut)
        return moment.draw.used

    def reset(self) -> dict[str, Tensor]:
        """Begin a new episode in every environment; the first observations.

        With `random_episode_phase` the episodes begin at random times of their length, so that they do not all end at once.
        """
        episode = self.episode
        episode.done.fill_(True)
        drawn = self._draw("step")
        self._restart(self.moment(drawn))
        self._write()
        if self.page.env.random_episode_phase:
            phase = random.uniform(self._keys["phase"], self.env_ids, episode.age, 1)[:, 0]
            episode.episode_length.copy_((phase * self.max_episode_length).long())
        observed = self._observe()
        if not self._block_sizes:
            self._block_sizes = {"step": drawn.used, "observe": observed}
            return self.reset()
        return self.obs

    # -------------------------------------------------------------------------------------------------- as a CUDA graph

    @property
    def captured(self) -> bool:
        """Whether steps are replayed from a CUDA graph."""
        return self.page.physics.graph and self.physics.capturable and self.device.type == "cuda"

    @property
    def result(self) -> Step:
        """What the last step left behind."""
        e = self.episode
        return Step(self.obs, e.reward, e.terminated, e.truncated, self.final_obs, e.valid)

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Make one CUDA graph of `function`, which calls `advance`, where there is a device for it; else give it back.

        Where the capture fails, a line says why, and it stays as it is.
        """
        if not self.captured:
            return function
        rows = torch.arange(self.num_envs, device=self.device)
        state, totals = self.snapshot(rows), self._totals.save()
        with Waiting(f"{self.page.name}: building a step's kernels"):
            for _ in range(WARMUP):
                function()
            graph = try_to_capture(function, self.device, self.physics)
        self.physics.capturable = graph is not None
        self.restore(rows, state)
        self._totals.load(totals)
        self.drain_unstable()  # those steps happen again, and report then
        self.physics.drain_overflow()
        return graph or function

    # ------------------------------------------------------------------------------------------------ what it consists of

    @property
    def action_space(self) -> ActionSpace:
        """What an action is."""
        if self._space is None:  # not before it is asked for: it reads numbers, of which a trace has none
            self._space = ActionSpace(self.num_actions, bound=tuple(self.terms.actions.reach().tolist()))
        return self._space

    def controls(self) -> Tensor:
        """Make what the engine is told by the last actions, (N, nu) or (N, decimation, nu)."""
        return self.terms.actions.controls(self.moment(Draw()))

    def _allocate(self) -> None:
        """Every mutable tensor of the environment."""
        terms = self.terms
        self.num_actions, self.memory = terms.actions.size, Memory(self.num_envs, self.device)
        self._space: ActionSpace | None = None
        self.episode, self.buffers = Episode(self.num_actions, len(terms.rewards)), self.memory.tensors
        self.memory.add("", self.episode)
        for path, owner in terms.owners.items():
            self.memory.add(path, owner)
        self.groups = terms.groups(self.moment(Draw()))
        for group in self.groups:
            for term in group.terms:
                self.memory.add(term.path, term)
        self.obs = {group.name: self._zeros(group.size) for group in self.groups}
        self.final_obs = {name: self._zeros(self.obs[name].shape[1]) for name in self.page.env.final_obs_groups}
        told = terms.told(self.moment(Draw()))
        drawn = {mode: self.fields.num_drawn(mode) for mode in terms.events}
        self.quarantine = Quarantine(self.episode.age, names_of(terms, self.groups, told, drawn))
        names = total_names((term.name for term in terms.terminations), (term.name for term in terms.rewards), told.errors)
        self._totals = Totals(names, told.shares, self.num_envs, self.device)

    def _randomize(self, mode: str, step: int) -> None:
        """Draw what is drawn between steps: once at startup, or for an iteration; outside any graph."""
        if not self.terms.events[mode]:
            return
        counted = counting(self.num_envs, self.device)
        self._drafted(mode, counted)
        key = random.stream_key(self.page.env.seed, mode, self.device)
        self.fields.write_all(mode, self._drafted(mode, Draw(random.uniform(key, self.env_ids, step, counted.used))))

    def _drafted(self, mode: str, draw: Draw) -> Draft:
        draft, moment = self.fields.draft(mode, self.physics.qpos, self.physics.qvel), self.moment(draw)
        for term in self.terms.events[mode]:
            term.happen(moment, draft)
            if draft.places:
                raise UserError(f"events.{term.name}: mode {mode!r} draws numbers of the model; robots are placed at reset")
            self.quarantine.refuse(f"events.{term.name}", self.fields.drawn_in(mode, draft), self.env_ids)
        return draft

    def begin_iteration(self, iteration: int, numbers: dict[str, Tensor]) -> None:
        """Set numbers of the page, by dotted path, in place, and draw what is drawn for an iteration.

        A trainer does so before each rollout, with what curricula have moved.  For whoever steps without a trainer the page's
        own numbers hold, and what was drawn for iteration 0: nothing in here moves them.

        Raises:
            ValueError: they are of another page.
        """
        self.terms.set_numbers(numbers)
        self._randomize("iteration", iteration)

    def drain_totals(self) -> dict[str, float]:
        """Read the sums over all steps since the last call, by name; the one place where the host reads metrics."""
        totals = self._totals.drain()
        return totals | {f"overflow/{setting}": float(rows) for setting, rows in self.physics.drain_overflow().items()}

    def drain_unstable(self) -> list[dict]:
        """Hand out what is known of robots lost since the last call: see `Physics.drain_unstable` and `Quarantine.drain`."""
        return self.physics.drain_unstable() + self.quarantine.drain()

    def snapshot(self, rows: Tensor) -> dict[str, Tensor]:
        """All that the rows' future depends on, exact on the same engine; rows int64 (R,), every tensor (R, ...)."""
        state = {f"physics.{name}": tensor for name, tensor in self.physics.snapshot(rows).items()}
        return state | {name: tensor[rows].clone() for name, tensor in self._registered().items()}

    def restore(self, rows: Tensor, state: dict[str, Tensor]) -> None:
        """Set rows to what `snapshot` gave.

        Raises:
            ValueError: the snapshot is of another page.
        """
        physics = {name: value for name, value in state.items() if name.startswith("physics.")}
        own = {name: value for name, value in state.items() if name not in physics}
        check_same_parts(own, self._registered())
        self.physics.restore(rows, {name.removeprefix("physics."): value for name, value in physics.items()})
        for name, tensor in self._registered().items():
            tensor[rows] = own[name].to(tensor.device)

    def render_state(self, row: int) -> tuple[mujoco.MjModel, Any, Any]:
        """Give the model to draw and one robot's qpos and mocap poses, as NumPy arrays, on every engine."""
        return self.scene.render_model, self.physics.qpos[row].cpu().double().numpy(), None

    def mirror_maps(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Index and sign of the left-right reflection of each observation group and of `actions`."""
        maps = {group.name: group.mirror_map(self.terms.reflect) for group in self.groups}
        return maps | {"actions": self.terms.reflect_actions()}

    def close(self) -> None:
        """Free the engine."""
        self.physics.close()

    def _registered(self) -> dict[str, Tensor]:
        fields = {f"model.{name}": tensor for name, tensor in self.fields.values.items()}
        return self.buffers | fields | {f"obs.{name}": tensor for name, tensor in self.obs.items()}

    def moment(self, draw: Draw) -> Moment:
        """Make what terms see now; what they draw, they draw from `draw`."""
        return Moment(
            robot=PartState(self.robot, self.physics),
            scene=self.scene,
            episode=self.episode,
            commands=self.terms.commands,
            trackers=self.terms.trackers,
            model=self.fields.values,
            step_dt=self.step_dt,
            decimation=self.page.physics.decimation,
            max_episode_length=self.max_episode_length,
            env_ids=self.env_ids,
            draw=draw,
        )

    def _draw(self, half: str) -> Draw:
        if not self._block_sizes:
            return counting(self.num_envs, self.device)
        size = self._block_sizes[half]
        return Draw(random.uniform(self._keys[half], self.env_ids, self.episode.age, size))

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(self.num_envs, *shape, device=self.device)
