"""A page, opened: a few of its robots are made and moved, and what a training takes is estimated, before it is taken."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from embodied_rl.config import Page, load, override
from embodied_rl.config.page import LEARNERS, PhysicsSettings, SceneSettings
from embodied_rl.config.pool import PoolSettings
from embodied_rl.config.rollout_size import rollout_envs
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.learn.costs import FLOAT, memory_of, operations
from embodied_rl.learn.learner import learner_class, numbers_of
from embodied_rl.learn.sac_networks import bound_of
from embodied_rl.machine import total_memory
from embodied_rl.make_env import left_out, make, make_scene, make_vector
from embodied_rl.mdp.curricula import Curricula
from embodied_rl.problems import did_you_mean
from embodied_rl.robot import find_robot
from embodied_rl.scene import build_scene
from embodied_rl.scene.report import Report, report
from embodied_rl.scene.table import rows
from embodied_rl.trial import check_steps
from embodied_rl.vector_env import VectorEnv

#: Robots that are made to see whether a page's can be, and control steps that they take to be timed.
_ROBOTS, _STEPS = 16, 10
#: An iteration that takes longer is told of [s].
_LONG = 60.0
#: Copies of a robot's state: what is kept, what is drafted, and what a step computes on its way.
_COPIES = 4


@dataclass(frozen=True)
class Inspection:
    """What a page is, once a few of its environments were made."""

    lines: tuple[str, ...]
    """What there is to be seen and done, by kind; a line each."""
    memory: dict[str, float]
    """What it takes [bytes], by what takes it."""
    steps_per_s: float | None
    """Control steps a second that the physics gives here; None where that is not simulated here."""
    iteration_s: float | None
    """An iteration's time here, estimated [s]."""
    robot: tuple[str, ...] = ()
    """Every number of the robot as it is simulated, a line for each of its parts."""
    doubts: tuple[str, ...] = ()
    """What happened in its first step that is hardly meant."""

    def summary(self, page: Page) -> str:
        """Write what `check` says of a page that is right."""
        robots = rollout_envs(page.pool, page.env.num_envs)
        total = robots * page.train.steps * page.train.iterations
        said = [f"{robots:,} x {page.train.steps} x {page.train.iterations:,} = {total:,} steps"]
        said.append(f"memory {_gib(sum(self.memory.values()))} of {_gib(total_memory())}")
        if self.steps_per_s is not None and self.iteration_s is not None:
            rate, whole = round(self.steps_per_s, -2), self.iteration_s * page.train.iterations
            said.append(f"physics about {rate:,.0f} steps/s here; an iteration {_time(self.iteration_s)}, all {_time(whole)}")
        return "\n".join((*self.lines, *said))


def inspect(page: Page) -> Inspection:
    """Make a few of a page's environments, take a step, and estimate what a training of it takes.

    Raises:
        UserError: the page cannot be trained: every reason that can be known before, a line each.
    """
    if page.train.learner not in LEARNERS:  # ours are there, and take longer to import than all the rest
        learner_class(page)
    _check_minibatches(page)
    _check_pool(page)
    if page.curriculum:
        Curricula(page, numbers_of(page)).advance({}, 0)
    if page.env.source:
        env = make_vector(page, torch.arange(min(2, page.env.num_envs)))  # of two it is seen whether they are alike
        try:
            return _inspected(page, env, {}, (), None)
        finally:
            env.close()
    with torch.no_grad():
        robots = make(_small(page))
        try:
            if page.symmetry != "none":
                robots.mirror_maps()
            robots.step(torch.zeros(robots.num_envs, robots.num_actions))
            _check_first_step(page, robots)
            totals = robots.drain_totals()
            _check_shares(page, totals)
            told = tuple(_of_first_step(robots, totals))
            check_steps(robots)
            rate = _rate(robots)
            engine = [f"{page.physics.engine:13s} {line}" for line in left_out(page, robots)]
            found = _inspected(page, robots, _of_robots(page, robots), (*_described(page, robots), *engine), rate)
            return replace(found, robot=tuple(rows(robots.scene)), doubts=told)
        finally:
            robots.close()


def _check_minibatches(page: Page) -> None:
    """Check that no minibatch is empty.

    Raises:
        UserError: one is; one line.
    """
    if page.train.learner == "sac":
        return
    robots, steps, count = rollout_envs(page.pool, page.env.num_envs), page.train.steps, page.ppo.num_mini_batches
    whose = {"a recurrent policy": page.ppo.rnn_type != "none", "IMPALA": page.train.learner == "impala"}
    whole = next((who for who, is_so in whose.items() if is_so), None)  # whose minibatches are whole parts of episodes
    if count > (there := robots if whole else robots * steps):
        what = f"robots, which {whole}'s minibatches share out" if whole else f"transitions ({robots} x {steps})"
        raise UserError(f"{page.name}: ppo.num_mini_batches: {count} is more than an iteration's {there} {what}; take fewer")


def _check_pool(page: Page) -> None:
    """Check that nothing asks for a pool where there is none.

    It is no mistake of a page that is not trained: a pool's own processes have one without workers.

    Raises:
        UserError: something does; one line.
    """
    for key in ("mode", "inference", "lag") if page.pool.workers is None else ():
        given, default = getattr(page.pool, key), PoolSettings.model_fields[key].default
        if given != default:
            message = f"{page.name}: pool.{key}: {given} is only read with a pool, and pool.workers: null is none"
            raise UserError(f"{message}; take pool.workers: 0, or pool.{key}: {default}")


def report_of(what: str) -> Report:
    """Compare what a robot, or a page's, is simulated as with what its file says.

    Raises:
        UserError: there is no such robot or page, or it cannot be compiled.
    """
    if robot := find_robot(what):
        physics, world = PhysicsSettings(), SceneSettings()
        return report(build_scene(robot, physics=physics, **world.model_dump()), physics, world)
    page = load(what)
    return report(make_scene(page), page.physics, page.scene)


def _small(page: Page) -> Page:
    """Change a page to one of which a few robots are made in no time, with nothing remembered that costs memory."""
    changes = [f"env.num_envs={min(_ROBOTS, page.env.num_envs)}", "env.compile=false"]
    changes += ["physics.engine=native", "physics.device=auto", "pool.workers=null"]
    for group, entries in page.observations.items():
        for name, entry in entries.items():
            if entry.history > 1 or entry.delay[1] > 0:
                changes += [f"observations.{group}.{name}.history=1", f"observations.{group}.{name}.delay=[0, 0]"]
    return override(page, changes)


def _inspected(page: Page, env: VectorEnv, robots: dict[str, float], lines: tuple[str, ...], rate: float | None) -> Inspection:
    widths = _widths(page, env)
    actions = env.action_space.size
    if page.train.learner == "sac":
        lines += (_bounded(page, env),)
    memory = robots | memory_of(page, widths, actions)
    needed, there = sum(memory.values()), total_memory()
    if needed > there:
        parts = ", ".join(
            f"{name} {_gib(size)}" for name, size in sorted(memory.items(), key=lambda one: -one[1]) if size > 1e-3 * needed
        )
        advice = {
            "robots": "fewer env.num_envs, shorter histories and delays",
            "rollout": "fewer env.num_envs or train.steps",
            "replay": "a smaller sac.replay_size",
            "networks": "smaller networks (actor_hidden_dims, critic_hidden_dims, rnn_hidden_dim)",
            "a minibatch": "more ppo.num_mini_batches, a smaller sac.batch_size or smaller networks",
        }[max(memory, key=lambda name: memory[name])]
        raise UserError(
            f"{page.name}: training takes about {_gib(needed)} ({parts}), and this machine has {_gib(there)}; {advice}"
        )
    if rate is None:
        return Inspection(lines, memory, None, None)
    return Inspection(lines, memory, rate, _iteration(page, widths, actions, rate))


def _described(page: Page, env: Env) -> tuple[str, ...]:
    """Say what is driven, seen and asked for."""
    robot, terms = env.robot.spec, env.terms
    driven = [f"{name} {len(term.joints)}" for name, term in terms.actions.terms]
    mass = float(env.scene.model.body_subtreemass[0])
    lines = [
        f"robot         {robot.name}: {len(robot.joint_names)} joints, {len(robot.feet)} feet, {mass:.4g} kg",
        f"actions       {env.num_actions} = {' + '.join(driven)}",
    ]
    for group in env.groups:
        entries = page.observations[group.name]
        sizes = [(term.name, term.size, entries[term.name].history) for term in group.terms]
        total = sum(size * history for _, size, history in sizes)
        parts = " + ".join(f"{name} {size}" + (f" x {history}" if history > 1 else "") for name, size, history in sizes)
        lines.append(f"{group.name:13s} {total} = {parts}")
    if terms.commands:
        sizes = (f"{name} {term.command.shape[1]}" for name, term in terms.commands.items())
        lines.append(f"{'commands':13s} {', '.join(sizes)}")
    return tuple(lines)


def _bounded(page: Page, env: VectorEnv) -> str:
    """Say what an output of 1 stands for, of each joint.

    Raises:
        UserError: of one of them nobody knows; one line.
    """
    bound = bound_of(env.action_space, page.sac)
    joints: list[str] = []
    if isinstance(env, Env):
        joints = [env.robot.joint_names[joint] for _, term in env.terms.actions.terms for joint in term.joints]
    told = [f"{name} {one:.3g}" for name, one in zip(joints, bound, strict=False)] or [f"{one:.3g}" for one in bound]
    return f"+-1 is        {', '.join(told)}"


def _widths(page: Page, env: VectorEnv) -> dict[str, int]:
    """Size of each observation group, histories and all."""
    widths = {name: values.shape[1] for name, values in env.obs.items()}
    if isinstance(env, Env):
        for group in env.groups:
            entries = page.observations[group.name]
            widths[group.name] = sum(term.size * entries[term.name].history for term in group.terms)
    return widths


def _of_robots(page: Page, env: Env) -> dict[str, float]:
    """Estimate what the robots take [bytes]."""
    state = sum(value.nbytes for value in env.snapshot(torch.arange(1)).values())
    for group in env.groups:
        for term in group.terms:
            entry = page.observations[group.name][term.name]
            state += FLOAT * term.size * (2 * (entry.history - 1) + entry.delay[1])
    elsewhere = page.pool.has_processes and page.pool.address != "local"
    return {} if elsewhere else {"robots": float(_COPIES * state * page.env.num_envs)}


def _check_first_step(page: Page, env: Env) -> None:
    """Check that the robots outlive a step of doing nothing, as far as a training asks for it.

    Raises:
        UserError: a term gives no finite number, or the physics blows up, for too many of them; one line.
    """
    lost = 1.0 - float(env.episode.valid.float().mean())
    if lost > (most := page.physics.max_unstable):
        whys = [one["error"] for one in env.drain_unstable() if one["error"]]
        why = whys[0] if whys else f"the simulation of {env.robot.spec.name} blows up: a mass, place, gain or dt that cannot be"
        raise UserError(
            f"{page.name}: {why}, in the first step: {100 * lost:.0f} % of the robots are lost, and a training stops beyond "
            f"{100 * most:g} % (physics.max_unstable)"
        )


def _check_shares(page: Page, totals: dict[str, float]) -> None:
    """Check that what curricula `earned` go by is counted.

    Raises:
        UserError: it is not; one line.
    """
    counted = [name.removeprefix("share/") for name in totals if name.startswith("share/")]
    for name, entry in page.curriculum.items():
        if entry.term == "earned" and (share := entry.params["share"]) not in counted:
            there = did_you_mean(share, counted) or (f"; there are {', '.join(counted)}" if counted else "; nothing is")
            raise UserError(f"{page.name}: curriculum.{name}.share: {share!r} is counted by no command or event{there}")


def _of_first_step(env: Env, totals: dict[str, float]) -> Iterator[str]:
    """Tell of terminations that ended every episode in that step."""
    for term in env.terms.terminations:
        if not term.function.time_out and totals[f"termination/{term.name}"] == totals["steps"]:
            yield f"terminations.{term.name} ends every episode in its first step"


def _rate(env: Env) -> float:
    """Measure how many control steps of a robot the physics takes a second."""
    begun = time.perf_counter()
    for _ in range(_STEPS):
        env.physics.step(env.controls())
    return _STEPS * env.num_envs / (time.perf_counter() - begun)


def _iteration(page: Page, widths: dict[str, int], actions: int, rate: float) -> float:
    """Estimate the time of an iteration on this machine's cores [s]."""
    size = 384
    factors = torch.ones(2, size, size)
    torch.mm(*factors)
    begun = time.perf_counter()
    for _ in range(3):
        torch.mm(*factors)
    flops = 3 * 2 * size**3 / (time.perf_counter() - begun)
    samples = rollout_envs(page.pool, page.env.num_envs) * page.train.steps
    return samples / rate + operations(page, widths, actions) / flops


def warnings_of(page: Page, found: Inspection) -> Iterator[str]:
    """Tell what can be done and is hardly meant."""
    if found.iteration_s is not None and found.iteration_s > _LONG and page.physics.engine == "native":
        samples = rollout_envs(page.pool, page.env.num_envs) * page.train.steps
        yield f"{page.name}: an iteration takes about {_time(found.iteration_s)} here ({samples:,} steps); is that meant?"
    yield from (f"{page.name}: {doubt}; is that meant?" for doubt in found.doubts)
    if not page.env.source:
        if not any(entry.weight for entry in page.rewards.values()):
            yield f"{page.name}: rewards: none, or all of weight 0: the policy is asked for nothing; is that meant?"
        if not page.terminations:
            yield f"{page.name}: terminations: none: no episode ever ends, and events of resets happen once; is that meant?"


def _gib(size: float) -> str:
    for unit in ("MiB", "GiB", "TiB", "PiB", "EiB"):
        size /= 1024.0 if unit != "MiB" else 1024.0**2
        if size < 1000.0 or unit == "EiB":
            break
    return f"{size:,.3g} {unit}"


def _time(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2.0 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.2g} s"
