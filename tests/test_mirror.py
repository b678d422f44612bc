"""Left-right symmetry of every shipped page: the observation of the mirrored robot is the mirrored observation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import embodied_rl
from embodied_rl.config import config_names, load
from embodied_rl.env import Env
from embodied_rl.mdp.moment import Draw

COUNT, HALF_PERIOD = 64, 9  # robots; control steps in half a cycle of the gait
#: Every observation term, with memory, beside those of the pages.
EVERYTHING = [
    *(f"observations.critic.{name}={{}}" for name in ("foot_height", "foot_air_time", "joint_torque")),
    "observations.actor.joint_vel={history: 3}",
    "observations.actor.base_ang_vel={delay: [1, 2], history: 2}",
]


#: What is remembered of every joint.
JOINTS = {"actions", "previous_actions", "trackers.previous_joint_vel.value"}


def _of_feet(env: Env) -> list[Tensor]:
    """What is remembered of every foot, (N, F)."""
    return [buffer for name, buffer in env.buffers.items() if name.startswith("trackers.air_time.")]


def _make(name: str, changes: list[str]) -> Env:
    page = load(name)
    frequency = 0.5 / (HALF_PERIOD * page.control_dt)
    quiet = [
        f"observations.{group}.{term}.noise=0.0"
        for group, terms in page.observations.items()
        for term, entry in terms.items()
        if entry.noise
    ]
    clock = [f"commands.velocity.gait_frequency={frequency}"] if "velocity" in page.commands else []
    # a ground whose mirror image is itself
    level = [f"patches.{kind}=null" for kind in page.patches if kind != "flat"]
    level += ["events.start_on_patch.kinds=[]"] if level else []
    return embodied_rl.make(name, ["env.compile=false", *quiet, *clock, *level, *changes], num_envs=COUNT)


#: A pool's pages are another's environments, or a page of these in other processes.
PAGES = [name for name in config_names() if (page := load(name)).env.source is None and page.pool.workers is None]


@pytest.fixture(scope="module", params=[*PAGES, "everything"])
def env(request) -> Iterator[Env]:
    everything = request.param == "everything"
    env = _make("go2_flat" if everything else request.param, EVERYTHING if everything else [])
    yield env
    env.close()


def _randomize(env: Env, generator: torch.Generator) -> None:
    """All that a term may read, at random; what cannot be negative or between 0 and 1 is not."""

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    physics, robot, buffers = env.physics, env.robot, env.buffers
    physics.qpos.copy_(robot.default_qpos + 0.3 * normal(physics.qpos))
    physics.qpos[:, 3:7] /= physics.qpos[:, 3:7].norm(dim=-1, keepdim=True)
    physics.qvel.copy_(normal(physics.qvel))
    for name in ("frame_pos", "frame_lin_vel", "joint_torque"):
        getattr(physics, name).copy_(normal(getattr(physics, name)))
    physics.frame_quat.copy_(torch.nn.functional.normalize(normal(physics.frame_quat), dim=-1))
    for tensor in physics.sensors.values():
        tensor.copy_((normal(tensor) > 0).float())
    for name in JOINTS & set(buffers):
        buffers[name].copy_(normal(buffers[name]))
    for tensor in _of_feet(env):
        tensor.copy_(normal(tensor).abs())
    if "geom_friction" in env.fields.values:
        feet = env.robot.first_foot_geoms
        env.fields.values["geom_friction"][:, feet, 0] = torch.rand(COUNT, len(feet), generator=generator)
    # never at the very moment of a change of legs, where rounding decides
    half_periods = torch.randint(0, 100, (COUNT,), generator=generator)
    buffers["episode_length"].copy_(HALF_PERIOD * half_periods + torch.randint(1, HALF_PERIOD, (COUNT,), generator=generator))
    for command in env.terms.commands.values():
        nothing = torch.rand(COUNT, 1, generator=generator) < 0.2
        command.command.copy_(normal(command.command) * ~nothing)


def _mirrors_of_commands(env: Env) -> dict[Any, tuple[Tensor, Tensor]]:
    """Each command's reflection as the observation that shows it declares it; errors and rewards hold it to the physics."""
    view = env.moment(Draw())
    return {
        command: env.terms.reflect(term)
        for command in env.terms.commands.values()
        for group in env.groups
        for term in group.terms
        if torch.equal(term.function(view, **term.params), command.command)
    }


def _mirror(env: Env) -> None:
    """Reflect the moment through the world's xz plane; the clock, half a cycle on, swaps the legs' turns."""
    commands = _mirrors_of_commands(env)
    assert set(commands) == set(env.terms.commands.values()), "no observation shows the command"
    physics, robot, buffers = env.physics, env.robot, env.buffers
    permutation, signs = (torch.tensor(values) for values in robot.spec.joint_mirror())
    feet = list(robot.spec.foot_mirror())

    def joints(values: Tensor) -> Tensor:
        return values[:, permutation] * signs

    vector, pseudovector = torch.tensor([1.0, -1.0, 1.0]), torch.tensor([-1.0, 1.0, -1.0])
    physics.qpos[:, 0:3] *= vector
    physics.qpos[:, 3:7] *= torch.tensor([1.0, -1.0, 1.0, -1.0])
    physics.qvel[:, 0:3] *= vector
    physics.qvel[:, 3:6] *= pseudovector
    physics.qpos[:, robot.qpos_index] = joints(physics.qpos[:, robot.qpos_index])
    physics.qvel[:, robot.qvel_index] = joints(physics.qvel[:, robot.qvel_index])
    physics.joint_torque.copy_(joints(physics.joint_torque))
    for name in ("frame_pos", "frame_lin_vel"):
        tensor = getattr(physics, name)
        if tensor.shape[1]:
            tensor.copy_(tensor[:, feet] * vector)
    if physics.frame_quat.shape[1]:
        physics.frame_quat.copy_(physics.frame_quat[:, feet] * torch.tensor([1.0, -1.0, 1.0, -1.0]))
    for name, tensor in physics.sensors.items():
        kind, _, group = name.partition(":")
        bodies = robot.spec.bodies[group] if kind == "contact" else ()
        order = [bodies.index(robot.spec.mirrored_name(body)) for body in bodies] or feet
        tensor.copy_(tensor[:, order])
    for name in JOINTS & set(buffers):
        buffers[name].copy_(joints(buffers[name]))
    for tensor in _of_feet(env):
        tensor.copy_(tensor[:, feet])
    if "geom_friction" in env.fields.values:
        geoms, friction = robot.first_foot_geoms, env.fields.values["geom_friction"]
        friction[:, geoms, 0] = friction[:, geoms[feet], 0]
    buffers["episode_length"].add_(HALF_PERIOD)
    for command, (index, sign) in commands.items():
        command.command.copy_(command.command[:, index] * sign)


def _trace(env: Env, mirrored: bool) -> list[dict[str, Tensor]]:
    """Observations, controls, rewards and ends of four random moments in a row, so that histories fill."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in env.buffers.items():
        if name.endswith(".past"):
            buffer.zero_()
    trace = []
    for step in range(4):
        _randomize(env, generator)
        if mirrored:
            _mirror(env)
        view = env.moment(Draw(torch.full((COUNT, 512), 0.5)))
        view.terminated = torch.zeros(COUNT, dtype=torch.bool)
        begun = torch.full((COUNT,), step == 0)
        seen = {f"obs.{g.name}": g.compute(view, noisy=True, fresh=begun).clone() for g in env.groups}
        seen["controls"] = env.controls().clone()
        for kind, terms in (("reward", env.terms.rewards), ("termination", env.terms.terminations)):
            seen |= {f"{kind}.{term.name}": term.function(view, **term.params).float() for term in terms}
        for command in env.terms.commands.values():
            seen |= {f"error.{name}": error.clone() for name, error in command.errors(view).items()}
        trace.append(seen)
    return trace


def test_the_mirrored_robot_sees_the_mirrored_observation(env):
    maps = env.mirror_maps()
    assert set(maps) == {*env.obs, "actions"}
    default = env.robot.default_joint_pos
    for here, there in zip(_trace(env, mirrored=False), _trace(env, mirrored=True), strict=True):
        for group in env.obs:
            index, sign = maps[group]
            expected = here[f"obs.{group}"][:, index] * sign
            assert not torch.allclose(expected, here[f"obs.{group}"])
            torch.testing.assert_close(there[f"obs.{group}"], expected, rtol=1e-5, atol=2e-4, msg=group)
        index, sign = maps["actions"]
        offset = here["controls"] - default  # what the mirrored action asks for is the mirrored target
        torch.testing.assert_close(there["controls"] - default, offset[..., index] * sign, rtol=1e-5, atol=1e-6)


def test_mirroring_twice_changes_nothing(env):
    for name, (index, sign) in env.mirror_maps().items():
        width = env.num_actions if name == "actions" else env.obs[name].shape[1]
        assert index.shape == sign.shape == (width,)
        values = torch.arange(1.0, width + 1.0)
        assert torch.equal((values[index] * sign)[index] * sign, values), name


def test_neither_rewards_nor_ends_nor_errors_prefer_a_side(env):
    for here, there in zip(_trace(env, mirrored=False), _trace(env, mirrored=True), strict=True):
        for name in here:
            if name.startswith(("reward.", "error.")) or (name.startswith("termination.") and not name.endswith("time_out")):
                torch.testing.assert_close(there[name], here[name], rtol=1e-4, atol=1e-4, msg=name)
