"""What users bring that no shipped page has: terms that remember, bodies beside the robot, other robots, own families."""

from __future__ import annotations

import copy
import functools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from torch import Tensor

from embodied_rl import make_env, training
from embodied_rl.config import ConfigError, load
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.learn.train import Trainer
from embodied_rl.mdp.moment import Draw
from embodied_rl.paths import PACKAGE

ENVS = 6
SMALL = [
    *("env.compile=false", f"env.num_envs={ENVS}", "env.episode_s=0.2", "physics.num_threads=1"),
    *("train.steps=6", "ppo.actor_hidden_dims=[8]", "ppo.critic_hidden_dims=[8]", "train.save_every=2"),
    *("ppo.num_learning_epochs=1", "ppo.num_mini_batches=2"),
]
Make = Callable[..., Env]


@pytest.fixture
def make() -> Iterator[Make]:
    """Environments of a page, small and eager, closed when the test is over."""
    made: list[Env] = []

    def build(page: Path | str, *overrides: str, **options: Any) -> Env:
        made.append(make_env.make(str(page), [*SMALL, *overrides], **options))
        return made[-1]

    yield build
    for env in made:
        env.close()


def learnt(trainer: Trainer, iterations: int) -> list[Tensor]:
    """The networks after training on, and the robots' whole state."""
    for _ in trainer.train(iterations):
        pass
    values = [value.clone() for network in trainer.learner.networks.values() for value in network.state_dict().values()]
    return values + list(trainer.collector.snapshot().values())


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def some_actions(env: Env, step: int) -> Tensor:
    return 0.8 * torch.randn(env.num_envs, env.num_actions, generator=torch.Generator().manual_seed(step))


def block(env: Env, group: str, name: str) -> slice:
    """Where an observation stands in its group."""
    start = 0
    for term in next(one for one in env.groups if one.name == group).terms:
        if term.name == name:
            return slice(start, start + term.size * term.history)
        start += term.size * term.history
    raise KeyError(name)


# ------------------------------------------------------------------------------------------- terms that remember something

TERMS = '''
import torch
from embodied_rl.config.types import Positive
from embodied_rl.mdp.state import State
from embodied_rl.mdp.term import observation, reward


@reward()
class drift:
    """exp(-(integral of v_y dt)^2 / std^2)."""

    state = {"way": State(), "farthest": State(fresh="keep")}

    def __init__(self, robot, *, std: Positive = 0.1):
        self.std = std

    def update(self, env):
        self.way.add_(env.step_dt * env.robot.lin_vel_yaw[:, 1])
        self.farthest.copy_(torch.maximum(self.farthest, self.way.abs()))

    def __call__(self, env):
        return torch.exp(-(self.way / self.std) ** 2)


@observation(mirror="vector")
class mean_velocity:
    """Velocity of the base, smoothed; at first that which the episode begins with [m/s], (N, 3)."""

    state = {"mean": State((3,), fresh="keep")}

    def update(self, env):
        self.mean.add_(0.2 * (env.robot.base_lin_vel_b - self.mean))

    def settle(self, env):
        self.mean.copy_(torch.where(env.done[:, None], env.robot.base_lin_vel_b, self.mean))

    def __call__(self, env):
        return self.mean


def turned(robot, *, sideways: bool):
    return (0, 1), (1.0, -1.0 if sideways else 1.0)


@observation(mirror=turned)
class goal:
    """A place that each episode draws, (N, 2)."""

    state = {"place": State((2,), fresh="keep")}

    def __init__(self, robot, *, sideways: bool = False):
        self.sideways = sideways

    def resample(self, env, done):
        drawn = env.draw.between(-1.0, 1.0, 2)
        self.place.copy_(torch.where(done[:, None], drawn, self.place))

    def __call__(self, env):
        return self.place
'''
#: Few terms beside them, so that they are soon compiled.
REMEMBERING = """
robot: go2
terms: [terms.py]
physics: {iterations: 6, ls_iterations: 10}
actions: {joint_position: {}}
observations:
  actor: {joint_pos: {}, mean_velocity: {delay: [0, 2]}, goal: {sideways: true}}
  critic: {joint_pos: {}, mean_velocity: {}, goal: {sideways: true, history: 2}}
rewards: {drift: {weight: 1.0, std: 0.2}}
terminations: {time_out: {}}
events: {reset_base: {lin_vel: 0.3}}
ppo: {symmetry: augmentation}
"""


@pytest.fixture
def remembering(tmp_path: Path) -> Path:
    (tmp_path / "terms.py").write_text(TERMS)
    (tmp_path / "remembering.yaml").write_text(REMEMBERING)
    return tmp_path / "remembering.yaml"


@pytest.mark.parametrize("how", ["eager", "compiled", "as a pool's shards"])
def test_own_terms_that_remember_are_resumed_bit_for_bit(
    remembering: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    # traced as it is for a training; what would then be built of it is not the terms'
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    more = {"compiled": ["env.compile=true"], "as a pool's shards": ["pool.workers=1", "pool.address=none", "pool.shard_size=3"]}
    page = load(remembering, [*SMALL, *more.get(how, [])])
    whole = learnt(training.start(page, tmp_path / "run"), 4)
    resumed = training.resume(str(tmp_path / "run" / "checkpoints" / "model_000002.pt"), str(remembering))
    assert resumed.iteration == 2 and same(learnt(resumed, 4), whole)
    state = resumed.collector.snapshot()
    assert {"rewards.drift.way", "rewards.drift.farthest", "observations.actor.mean_velocity.mean"} <= set(state)
    assert state["rewards.drift.farthest"].min() > 0.0


def test_own_memory_begins_anew_or_is_kept(make: Make, remembering: Path) -> None:
    env = make(remembering, "env.random_episode_phase=false")
    way, farthest = env.buffers["rewards.drift.way"], env.buffers["rewards.drift.farthest"]
    mean, place = (env.buffers[f"observations.actor.{name}"] for name in ("mean_velocity.mean", "goal.place"))
    expected, record, first = torch.zeros(ENVS), torch.zeros(ENVS), place.clone()
    names = [term.name for term in env.terms.rewards]
    for step in range(9):
        env.step(some_actions(env, step))
        moment = env.moment(Draw())
        expected += env.step_dt * moment.robot.lin_vel_yaw[:, 1]
        record = torch.maximum(record, expected.abs())
        torch.testing.assert_close((way, farthest), (expected, record))
        earned = env.buffers["reward_terms"][:, names.index("drift")]
        torch.testing.assert_close(earned, torch.exp(-((expected / 0.2) ** 2)) * env.step_dt)
        assert torch.equal(place, first) and not env.episode.done.any()
    env.step(some_actions(env, 9))
    assert env.episode.truncated.all() and (env.episode.episode_length == 0).all()
    assert not way.any() and (farthest >= record).all()
    torch.testing.assert_close(mean, env.moment(Draw()).robot.base_lin_vel_b)
    assert (place != first).all() and place.abs().max() <= 1.0


def test_own_observations_are_mirrored_as_they_say(make: Make, remembering: Path) -> None:
    env = make(remembering)
    for group, width in (("actor", 2), ("critic", 4)):
        index, sign = env.mirror_maps()[group]
        velocity, goal = block(env, group, "mean_velocity"), block(env, group, "goal")
        assert (index[velocity] - velocity.start).tolist() == [0, 1, 2] and sign[velocity].tolist() == [1.0, -1.0, 1.0]
        assert (index[goal] - goal.start).tolist() == list(range(width)) and sign[goal].tolist() == [1.0, -1.0] * (width // 2)


def test_own_memory_moves_with_a_snapshot_and_belongs_to_its_robot(make: Make, remembering: Path) -> None:
    env, other = make(remembering), make(remembering)
    part = make(remembering, env_ids=torch.arange(2, 5))  # as a rank or a pool's shard has them

    def step(one: Env, number: int, rows: slice = slice(None)) -> list[Tensor]:
        done = one.step(some_actions(env, number)[rows])
        return [value.clone() for value in (*done.obs.values(), done.rewards, *one.buffers.values())]

    for number in range(7):
        whole, few = step(env, number), step(part, number, slice(2, 5))
        assert same([value[2:5] for value in whole], few)
    everyone = torch.arange(ENVS)
    state = env.snapshot(everyone)
    assert not torch.equal(other.buffers["rewards.drift.farthest"], env.buffers["rewards.drift.farthest"])
    other.restore(everyone, state)
    assert all(torch.equal(value, state[name]) for name, value in other.snapshot(everyone).items())
    for number in range(7, 12):
        assert same(step(env, number), step(other, number))


# ----------------------------------------------------------------------------------------- a robot behind another free body


def leg(name: str, x: float, y: float) -> str:
    return f"""
      <body name="{name}_thigh" pos="{x} {y} 0">
        <joint name="{name}_hip" axis="0 1 0" range="-1.5 1.5" damping="0.1" armature="0.01"/>
        <geom name="{name}_thigh" type="capsule" size="0.02" fromto="0 0 0 0 0 -0.15" contype="0" conaffinity="1" mass="0.3"/>
        <body name="{name}_calf" pos="0 0 -0.15">
          <joint name="{name}_knee" axis="0 1 0" range="-2.6 0.5" damping="0.1" armature="0.01"/>
          <geom name="{name}_foot" type="capsule" size="0.02 0.03" euler="0 1.57 0" pos="0 0 -0.15" priority="1" mass="0.1"/>
          <site name="{name}_foot" pos="0 0 -0.15"/>
        </body>
      </body>"""


LEGS = {"FL": (0.2, 0.1), "FR": (0.2, -0.1), "RL": (-0.2, 0.1), "RR": (-0.2, -0.1)}
#: Nothing holds it, and it floats: what it begins with, it keeps.
BALL = """
    <body name="ball" pos="30 -20 4" quat="0.6 0 0.8 0" gravcomp="1">
      <freejoint name="ball"/> <geom name="ball" type="sphere" size="0.1" mass="0.2"/>
    </body>"""
DOG = """
<mujoco>
  <compiler angle="radian"/>
  <worldbody>{ball}
    <body name="trunk" pos="0 0 0.33">
      <freejoint/>
      <geom name="trunk" type="box" size="0.25 0.1 0.05" mass="6" contype="0" conaffinity="1"/>{legs}
    </body>
  </worldbody>
</mujoco>
"""
DOG_PAGE = """
name: dog
model: dog.xml
base: trunk
base_height: 0.31
motors: {leg: {stiffness: 40.0, damping: 1.0, effort_limit: 30.0}}
joints:
""" + "".join(f"  {name}_hip: {{default: 0.4, motor: leg}}\n  {name}_knee: {{default: -0.8, motor: leg}}\n" for name in LEGS) + (
    "feet:\n" + "".join(
        f"  {name}: {{geoms: [{name}_foot], site: {name}_foot, gait_offset: {offset}}}\n"
        for name, offset in zip(LEGS, (0.0, 0.5, 0.5, 0.0), strict=True)
    )
) + "bodies: {base: [trunk]}\nmirror: {FL: FR, RL: RR}\n"  # fmt: skip
#: Everything that a page draws and measures; a solver that ends at the answer, however many bodies there are.
DOG_TASK = """
extends: go2_flat.yaml
robot: ./robot
physics: {iterations: 50, ls_iterations: 50, tolerance: 0.0}
terminations: {height: {minimum: 0.1}}
observations:
  critic: {foot_height: {}, joint_torque: {}, foot_air_time: {}}
rewards:
  foot_slip: {weight: -0.1}
  feet_air_time: {weight: 1.0}
  joint_acceleration: {weight: -1.0e-6}
  energy: {weight: -0.001}
events:
  payload: {term: randomize, quantity: mass, of: base, operation: add, range: [-1.0, 2.0]}
  centre: {term: randomize, quantity: com, of: base, operation: add, range: [-0.02, 0.02]}
  rotor: {term: randomize, quantity: armature, operation: scale, range: [0.5, 2.0]}
  gain: {term: randomize, quantity: stiffness, per: element, operation: scale, range: [0.8, 1.2], when: reset}
  push: {interval_s: 0.2, lin_vel: 0.5, ang_vel: 0.3}
"""


def dog(folder: Path, ball: str) -> Path:
    (folder / "robot").mkdir(parents=True)
    legs = "".join(leg(name, *place) for name, place in LEGS.items())
    (folder / "robot" / "dog.xml").write_text(DOG.format(ball=ball, legs=legs))
    (folder / "robot" / "robot.yaml").write_text(DOG_PAGE)
    (folder / "task.yaml").write_text(DOG_TASK)
    return folder / "task.yaml"


def test_a_robot_behind_a_ball_is_the_robot_alone(make: Make, tmp_path: Path) -> None:
    alone, behind = make(dog(tmp_path / "alone", "")), make(dog(tmp_path / "behind", BALL))
    assert alone.robot.root_qpos == 0 and behind.robot.root_qpos == 7 and behind.physics.qpos.shape[1] == 22
    at_rest = torch.tensor([30.0, -20.0, 4.0, 0.6, 0.0, 0.8, 0.0])
    ends = pushes = 0
    for step in range(50):
        before = alone.physics.qvel[:, :6].clone()
        one, other = alone.step(some_actions(alone, step)), behind.step(some_actions(behind, step))
        expected, found = ({
            **{f"obs.{name}": value for name, value in done.obs.items()},
            **{f"final.{name}": value for name, value in done.final_obs.items()},
            **{name: getattr(env.physics, name) for name in ("joint_torque", "frame_pos", "frame_lin_vel")},
            "rewards": done.rewards,
            "qpos": env.physics.qpos[:, ball:],
            "qvel": env.physics.qvel[:, max(ball - 1, 0) :],
        } for env, done, ball in ((alone, one, 0), (behind, other, 7)))  # fmt: skip
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(one.terminated, other.terminated) and torch.equal(one.truncated, other.truncated)
        assert torch.equal(behind.physics.qpos[:, :7], at_rest.expand(ENVS, 7)) and not behind.physics.qvel[:, :6].any()
        ends += int(alone.episode.done.sum())
        pushes += int(alone._touched.sum())
        assert not torch.equal(before, alone.physics.qvel[:, :6])
    assert ends > 20 and pushes > ends  # resets and pushes were among the steps
    assert alone.physics.joint_torque.abs().max() > 1.0


# --------------------------------------------------------------------------------------------------------- two action terms

CRAB = """
<mujoco>
  <compiler angle="radian"/>
  <worldbody>
    <body name="shell" pos="0 0 0.3">
      <freejoint/> <geom type="box" size="0.15 0.15 0.05" mass="4"/>
      <body name="tail" pos="-0.15 0 0">
        <joint name="tail" axis="0 1 0" damping="0.05" armature="0.01"/>
        <geom type="capsule" size="0.01" fromto="0 0 0 -0.1 0 0"/>
      </body>{limbs}
    </body>
  </worldbody>
</mujoco>
"""
LIMB = """
      <body name="{side}_arm" pos="0.15 {y} 0.05">
        <joint name="{side}_arm" axis="0 0 1" damping="0.05" armature="0.02"/>
        <geom type="capsule" size="0.02" fromto="0 0 0 0.15 0 0" mass="0.3"/>
      </body>
      <body name="{side}_leg" pos="0 {y} -0.05">
        <joint name="{side}_leg" axis="1 0 0" damping="0.05" armature="0.02"/>
        <geom name="{side}_foot" type="sphere" size="0.03" pos="0 0 -0.22" mass="0.2"/> <site name="{side}_foot" pos="0 0 -0.22"/>
      </body>"""
CRAB_PAGE = """
name: crab
model: crab.xml
base: shell
base_height: 0.3
joints:
  left_arm: {default: 0.2, stiffness: 5.0, damping: 0.4, effort_limit: 0.5}
  left_leg: {default: 0.1, stiffness: 30.0, damping: 1.0, effort_limit: 20.0}
  tail: {default: 0.3, stiffness: 8.0, damping: 0.3, effort_limit: 10.0}
  right_leg: {default: -0.1, stiffness: 30.0, damping: 1.0, effort_limit: 20.0}
  right_arm: {default: -0.2, stiffness: 5.0, damping: 0.4, effort_limit: 0.5}
groups: {arms: [left_arm, right_arm], legs: [left_leg, right_leg], left: [left_arm, left_leg]}
feet: {left: {geoms: [left_foot], site: left_foot}, right: {geoms: [right_foot], site: right_foot}}
bodies: {}
mirror: {left: right}
"""
CRAB_TASK = """
robot: .
physics: {integrator: euler}
actions:
  swing: {term: joint_velocity, joints: arms, scale: 4.0}
  walk: {term: joint_position, joints: legs, scale: 0.3, clip: 2.0}
observations: {actor: {projected_gravity: {}, joint_pos: {}, joint_vel: {scale: 0.1}, last_action: {history: 2}}}
rewards: {alive: {weight: 1.0}, action_rate: {weight: -0.01}}
terminations: {time_out: {}, tilt: {limit: 1.0}}
events: {reset_base: {}, reset_joints: {}}
ppo: {symmetry: augmentation}
"""


@pytest.fixture
def crab(tmp_path: Path) -> Path:
    limbs = "".join(LIMB.format(side=side, y=y) for side, y in (("left", 0.15), ("right", -0.15)))
    (tmp_path / "crab.xml").write_text(CRAB.format(limbs=limbs))
    (tmp_path / "robot.yaml").write_text(CRAB_PAGE)
    (tmp_path / "crab.yaml").write_text(CRAB_TASK)
    return tmp_path / "crab.yaml"


def test_controls_of_two_terms_reach_their_joints(make: Make, crab: Path) -> None:
    """Against MuJoCo without actuators, whose joints get the torques of the motors as they are written down."""
    env = make(crab, "env.random_episode_phase=false", measure=["joint_torque"])
    spec = env.robot.spec
    model = copy.deepcopy(env.scene.model)
    model.actuator_gainprm[:] = model.actuator_biasprm[:] = 0.0
    data = mujoco.MjData(model)
    joint = {name: index for index, name in enumerate(spec.joint_names)}
    stiffness, damping, limit, default = map(np.array, (spec.stiffness, spec.damping, spec.effort_limit, spec.default_joint_pos))
    at_pos, at_vel = env.robot.qpos_index.numpy(), env.robot.qvel_index.numpy()
    arms, legs = [joint["left_arm"], joint["right_arm"]], [joint["left_leg"], joint["right_leg"]]
    actions = torch.tensor([[1.0, -0.25, 0.5, -9.0]]).expand(ENVS, 4)
    data.qpos[:], data.qvel[:] = env.physics.qpos[0].double(), env.physics.qvel[0].double()
    clipped = 0
    for _ in range(3):
        env.step(actions)
        for _ in range(env.page.physics.decimation):
            position, velocity = data.qpos[at_pos], data.qvel[at_vel]
            torque = stiffness * (default - position) - damping * velocity  # what no term drives holds the default pose
            torque[arms] = damping[arms] * (np.array([4.0, -1.0]) - velocity[arms])
            torque[legs] = stiffness[legs] * (default[legs] + [0.15, -0.6] - position[legs]) - damping[legs] * velocity[legs]
            clipped += int((np.abs(torque) > limit).sum())
            data.qfrc_applied[at_vel] = torque = np.clip(torque, -limit, limit)
            mujoco.mj_step(model, data)
        np.testing.assert_allclose(env.physics.joint_torque[0], torque, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(env.physics.qpos[0], data.qpos, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(env.physics.qvel[0], data.qvel, rtol=1e-4, atol=1e-4)
    assert clipped > 0


def test_two_terms_are_mirrored_among_themselves_and_train(make: Make, crab: Path, tmp_path: Path) -> None:
    env = make(crab)
    index, sign = env.mirror_maps()["actions"]
    # about z and x a joint turns the other way in the mirror
    assert index.tolist() == [1, 0, 3, 2] and sign.tolist() == [-1.0] * 4
    seen = block(env, "actor", "last_action")
    whole, signs = (value[seen] for value in env.mirror_maps()["actor"])
    assert (whole - seen.start).tolist() == [1, 0, 3, 2, 5, 4, 7, 6] and signs.tolist() == [-1.0] * 8
    values = learnt(training.start(load(crab, SMALL), tmp_path / "run"), 2)
    assert all(value.isfinite().all() for value in values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("hold={term: joint_position, joints: left_leg}", "crab: actions.hold: 'left_leg' is driven by actions.walk already"),
        ("swing.joints=amrs", "\"amrs\" is not among the robot's groups; did you mean 'arms'?"),
    ],
)
def test_wrong_joints_are_one_line(make: Make, crab: Path, change: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        make(crab, f"actions.{change}")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_actions_of_one_side_have_no_mirror(make: Make, crab: Path) -> None:
    for change, said in (
        ("actions={swing: null, walk: {joints: left}}", "'left' holds 'left_arm' without its mirror partner 'right_arm'"),
        (
            "actions.walk.scale={left_leg: 0.3, right_leg: 0.5}",
            "scale: 0.3 of 'left_leg' and 0.5 of its mirror partner 'right_leg' differ; give both the same",
        ),
    ):
        with pytest.raises(UserError) as error:
            make(crab, change).mirror_maps()
        assert said in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------------ a biped

BIPED = """
<mujoco>
  <compiler angle="radian"/>
  <worldbody>
    <body name="pelvis" pos="0 0 0.5">
      <freejoint/> <geom type="box" size="0.08 0.1 0.08" mass="5"/>{legs}
    </body>
  </worldbody>
</mujoco>
"""
BIPED_LEG = """
      <body name="{side}_hip" pos="0 {y} -0.05">
        <joint name="{side}_roll" axis="1 0 0" range="-0.6 0.6" damping="0.1" armature="0.01"/>
        <geom type="sphere" size="0.03" mass="0.3"/>
        <body name="{side}_thigh">
          <joint name="{side}_hip" axis="0 1 0" range="-1.5 1.5" damping="0.1" armature="0.01"/>
          <geom type="capsule" size="0.03" fromto="0 0 0 0 0 -0.2" mass="0.5"/>
          <body name="{side}_shin" pos="0 0 -0.2">
            <joint name="{side}_knee" axis="0 1 0" range="0 2.2" damping="0.1" armature="0.01"/>
            <geom name="{side}_sole" type="box" size="0.06 0.03 0.01" pos="0.02 0 -0.2" euler="0 -0.1 0" priority="1" mass="0.2"/>
            <geom name="{side}_toe" type="capsule" size="0.015 0.02" pos="0.09 0 -0.195" euler="1.570796 0 0" priority="1" mass="0.1"/>
            <site name="{side}_foot" pos="0 0 -0.2" euler="0 0.3 0"/>
          </body>
        </body>
      </body>"""  # noqa: E501
BIPED_PAGE = """
name: biped
model: biped.xml
base: pelvis
base_height: 0.4645
motors: {leg: {stiffness: 60.0, damping: 2.0, effort_limit: 60.0}}
joints:
  left_roll: {default: 0.05, motor: leg}
  left_hip: {default: -0.2, motor: leg}
  left_knee: {default: 0.3, motor: leg}
  right_roll: {default: -0.05, motor: leg}
  right_hip: {default: -0.2, motor: leg}
  right_knee: {default: 0.3, motor: leg}
groups: {rolls: [left_roll, right_roll], hips: [left_hip, right_hip], knees: [left_knee, right_knee]}
feet:
  left: {geoms: [left_sole, left_toe], site: left_foot, gait_offset: 0.0}
  right: {geoms: [right_sole, right_toe], site: right_foot, gait_offset: 0.5}
bodies: {base: [pelvis]}
mirror: {left: right}
"""
BIPED_TASK = """
extends: go2_flat.yaml
robot: ./robot
actions: {joint_position: {scale: {rolls: 0.2, hips: 0.3, knees: 0.5}}}
observations:
  actor: {joint_pos: {noise: {rolls: 0.01, hips: 0.02, knees: 0.04}, history: 2}}
  critic: {foot_height: {}, foot_air_time: {}}
commands: {velocity: {gait_frequency: 2.5}}
rewards: {feet_air_time: {weight: 1.0}}
terminations: {height: {minimum: 0.2}}
"""


@pytest.fixture
def biped(tmp_path: Path) -> Path:
    (tmp_path / "robot").mkdir()
    legs = "".join(BIPED_LEG.format(side=side, y=y) for side, y in (("left", 0.08), ("right", -0.08)))
    (tmp_path / "robot" / "biped.xml").write_text(BIPED.format(legs=legs))
    (tmp_path / "robot" / "robot.yaml").write_text(BIPED_PAGE)
    (tmp_path / "biped.yaml").write_text(BIPED_TASK)
    return tmp_path / "biped.yaml"


def offsets(biped: Path, left: str, right: str) -> None:
    """Write other offsets into the robot's page; empty for none."""
    path = biped.parent / "robot" / "robot.yaml"
    text = re.sub(r"(left_foot)[^}]*", rf"\1{left}", path.read_text())
    path.write_text(re.sub(r"(right_foot)[^}]*", rf"\1{right}", text))


def test_a_biped_trains_and_knows_its_soles(make: Make, biped: Path, tmp_path: Path) -> None:
    values = learnt(training.start(load(biped, [*SMALL, "ppo.symmetry=augmentation"]), tmp_path / "run"), 3)
    assert all(value.isfinite().all() for value in values)
    env = make(biped, "events.reset_base={height: [0.0, 0.3], tilt: 1.0}", "events.reset_joints.position=1.0")
    model, data = env.scene.model, mujoco.MjData(env.scene.model)
    found = env.obs["critic"][:, block(env, "critic", "foot_height")]
    for row in range(ENVS):
        data.qpos[:] = env.physics.qpos[row].double()
        mujoco.mj_kinematics(model, data)
        for foot, height in zip(env.robot.spec.feet, found[row].tolist(), strict=True):
            distances = [
                mujoco.mj_geomDistance(model, data, model.geom("ground").id, model.geom(name).id, 10.0, None)
                for name in foot.geoms
            ]
            assert height == pytest.approx(min(distances), abs=1e-5)


HALF_PERIOD = 10  # control steps of half a cycle


def test_a_mirrored_biped_walks_in_the_mirror(make: Make, biped: Path) -> None:
    """Three robots and their mirror images, half a cycle on, through real steps."""
    quiet = [f"observations.actor.{name}.noise=0.0" for name in ("base_ang_vel", "projected_gravity", "joint_pos", "joint_vel")]
    begun = ["env.episode_s=9.0", "env.random_episode_phase=false", "env.reward_floor=null", "events=null"]
    exact = ["physics.iterations=50", "physics.tolerance=0.0", "commands.velocity.standing=0.0"]
    env = make(biped, *quiet, *begun, *exact)
    robot, half, generator = env.robot, ENVS // 2, torch.Generator().manual_seed(0)
    maps = env.mirror_maps()
    permutation, signs = (torch.tensor(values) for values in robot.spec.joint_mirror())
    assert maps["actions"][0].tolist() == [3, 4, 5, 0, 1, 2] and maps["actions"][1].tolist() == [-1.0, 1.0, 1.0] * 2
    vector, pseudovector = torch.tensor([1.0, -1.0, 1.0]), torch.tensor([-1.0, 1.0, -1.0])
    qpos, qvel = env.physics.qpos.clone(), env.physics.qvel.clone()
    qpos += 0.05 * torch.randn(qpos.shape, generator=generator)
    qpos[:, 3:7] /= qpos[:, 3:7].norm(dim=-1, keepdim=True)
    qvel += 0.3 * torch.randn(qvel.shape, generator=generator)
    qpos[half:, :3], qpos[half:, 3:7] = qpos[:half, :3] * vector, qpos[:half, 3:7] * torch.tensor([1.0, -1.0, 1.0, -1.0])
    qvel[half:, :3], qvel[half:, 3:6] = qvel[:half, :3] * vector, qvel[:half, 3:6] * pseudovector
    qpos[half:, robot.qpos_index] = qpos[:half, robot.qpos_index][:, permutation] * signs
    qvel[half:, robot.qvel_index] = qvel[:half, robot.qvel_index][:, permutation] * signs
    env.physics.write(torch.ones(ENVS, dtype=torch.bool), qpos=qpos, qvel=qvel)
    env.episode.episode_length[half:] += HALF_PERIOD
    asked = env.buffers["commands.velocity.command"]
    asked[half:] = asked[:half] * torch.tensor([1.0, -1.0, -1.0])
    env.buffers["commands.velocity.time_left"].fill_(9.0)
    rewards, touched = [], torch.zeros(())
    for step in range(6):
        action = 0.5 * torch.randn(half, env.num_actions, generator=generator)
        done = env.step(torch.cat((action, action[:, maps["actions"][0]] * maps["actions"][1])))
        assert not done.terminated.any()
        rewards.append(done.rewards.clone())
        touched = touched + env.physics.sensors["foot_contact"].sum()
        torch.testing.assert_close(done.rewards[half:], done.rewards[:half], rtol=1e-3, atol=1e-4)
        if step == 0:
            continue  # histories hold what was before the robots were moved
        for group, (index, sign) in ((name, maps[name]) for name in ("actor", "critic")):
            expected = done.obs[group][:half, index] * sign
            torch.testing.assert_close(done.obs[group][half:], expected, rtol=1e-3, atol=1e-3)
    assert torch.stack(rewards).std() > 1e-3 and touched > 6.0


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        (", gait_offset: 0.0", ", gait_offset: 0.3", "the gait offsets [0.0, 0.30000001192092896] of left and right are neither"),
        ("", "", "a term of the page reads the gait's offsets, and not every foot has one; give each a gait_offset"),
    ],
)
def test_a_gait_without_a_mirror_or_without_offsets_is_one_line(
    biped: Path, tmp_path: Path, left: str, right: str, said: str
) -> None:
    offsets(biped, left, right)
    with pytest.raises(UserError) as error:
        training.start(load(biped, SMALL), tmp_path / "run")
    assert said in str(error.value) and str(error.value).startswith(f"{biped.parent / 'robot' / 'robot.yaml'}: feet: ")
    assert "\n" not in str(error.value)


def test_numbers_by_group_reach_their_joints_and_a_childs_replace_them(make: Make, biped: Path) -> None:
    env = make(biped)
    scale, noise = "actions.joint_position.scale", "observations.actor.joint_pos.noise"
    for path, expected in ((scale, [0.2, 0.3, 0.5]), (noise, [0.01, 0.02, 0.04])):
        torch.testing.assert_close(env.params[path], torch.tensor(expected * 2))
    env.episode.actions.fill_(1.0)
    torch.testing.assert_close(env.controls() - env.robot.default_joint_pos, env.params[scale].expand(ENVS, -1))
    child = biped.parent / "child.yaml"
    for given, expected in (
        ("{rolls: 0.1, left_hip: 0.6, right_hip: 0.6, knees: 0.7}", [0.1, 0.6, 0.7] * 2),
        ("{all: 0.4}", [0.4] * 6),
        ("0.25", 0.25),
    ):
        child.write_text(f"extends: biped.yaml\nactions: {{joint_position: {{scale: {given}}}}}\n")
        torch.testing.assert_close(make(child).params[scale], torch.tensor(expected))
    child.write_text("extends: biped.yaml\nobservations: {actor: {joint_pos: {noise: {rolls: 0.1, hips: 0.2}}}}\n")
    with pytest.raises(ConfigError) as error:
        load(child)
    said = "observations.actor.joint_pos.noise: 'left_knee', 'right_knee' are missing; name every joint once"
    assert str(error.value).endswith(said) and "\n" not in str(error.value)


# -------------------------------------------------------------------------- a robot and a family in folders outside the project

DOCS = PACKAGE.parent / "docs" / "families.md"
STANDING = """
name: standing
task: balance
score: {push: 0.2, speed: 5.0, fall_rate: 1.0}
robot: hopper
env: {num_envs: 4, episode_s: 0.5, compile: false}
physics: {num_threads: 1}
actions: {joint_position: {scale: 0.3}}
observations: {actor: {projected_gravity: {}, joint_pos: {}, joint_vel: {}}}
rewards: {stay: {weight: 1.0}}
terminations: {time_out: {}}
events: {reset_joints: {}}
train: {steps: 6}
ppo: {actor_hidden_dims: [8], critic_hidden_dims: [8], num_learning_epochs: 1, num_mini_batches: 2}
"""
#: One process for the verbs that import torch, which takes longer than they do.
VERBS = """
import sys
from embodied_rl.cli import main
for verb in (["train", "page.yaml", "--iterations", "2", "--run-dir", "out"], ["eval", "out"], ["export", "out"]):
    sys.exit(1) if main(verb) else print("ended:", verb[0])
"""


@pytest.mark.skipif(not DOCS.is_file(), reason="needs a source checkout")
def test_a_robot_and_a_family_of_ones_own_from_any_directory(hopper: Callable[[Path, str], None], tmp_path: Path) -> None:
    text = DOCS.read_text(encoding="utf-8")
    names = re.findall(r"`(balance/[a-z./]+)`:\n", text)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for folder in ("balance", "hopper"):
        (tmp_path / folder).mkdir()
    for name, source in zip(names, blocks, strict=True):
        (tmp_path / name).write_text(source.replace("env.episode_s=10.0", "env.episode_s=0.2"))
    hopper(tmp_path / "hopper", "/")
    (tmp_path / "page.yaml").write_text(STANDING)

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    checked = run(str(Path(sys.executable).with_name("embodied-rl")), "check", "page.yaml", "--print")
    assert str(tmp_path / "balance") in checked and str(tmp_path / "hopper") in checked
    said = run(sys.executable, "-c", VERBS)
    assert re.findall(r"^ended: (\w+)$", said, re.MULTILINE) == ["train", "eval", "export"]
    assert "it keeps its balance" in said and "fall_rate" in said
    assert (tmp_path / "out" / "exported" / "policy.onnx").stat().st_size > 0
