"""The engines on float32 tensors held to the protocol: single simulations stepped with mj_step are the oracle of warp and mjx.

Tests that do not ask for MuJoCo's dynamics run on isaacgym too, on its stand-in.

tests/physics/test_parity.py compares whole robots; here the ways in and out of an engine matter, so a small machine does that has
every kind of state: a floating base, joints with limits, an actuator with activation and a delay, a mocap body.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from torch import Tensor

from embodied_rl.config.page import PhysicsSettings
from embodied_rl.errors import UserError
from embodied_rl.physics.kinematics import Frame
from embodied_rl.physics.tensors import TensorPhysics

ROWS, DECIMATION = 6, 4
#: What rows of a diverse batch have of their own.
OWN = (
    *("geom_friction", "body_mass", "body_inertia", "body_ipos", "dof_armature"),
    *("actuator_gainprm", "actuator_biasprm"),
)
STATE = mujoco.mjtState.mjSTATE_INTEGRATION
#: One leg on a floating base; `paw` is what its contact sensor asks for.
LEG = """
<mujoco>
  <option timestep="0.005" integrator="implicitfast" iterations="20" ls_iterations="20"><flag autoreset="disable"/></option>
  <worldbody>
    <geom name="ground" type="plane" size="0 0 1"/>
    <body name="marker" mocap="true" pos="1 2 3"/>
    <body name="base" pos="0 0 0.45">
      <freejoint/> <geom type="sphere" size="0.1" mass="2" contype="0" conaffinity="0"/>
      <body name="thigh" pos="0.1 0 0">
        <joint name="hip" axis="0 1 0" range="-1 1" armature="0.01"/>
        <geom type="capsule" fromto="0 0 0 0 0 -0.2" size="0.02" contype="0" conaffinity="0"/>
        <body name="calf" pos="0 0 -0.2">
          <joint name="knee" axis="0 1 0" range="-2 1" armature="0.01"/>
          <geom type="capsule" fromto="0 0 0 0 0 -0.2" size="0.02" contype="0" conaffinity="0"/>
          <geom name="paw" type="sphere" size="0.03" pos="0 0 -0.2" priority="1"/>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position name="hip" joint="hip" kp="20" kv="0.5" forcerange="-5 5"/>
    <general name="knee" joint="knee" dyntype="filter" dynprm="0.02" gainprm="20" biastype="affine" biasprm="0 -20 -0.5"
      {delay}/>
  </actuator>
  <sensor><contact geom1="paw" data="found" num="1"/></sensor>
</mujoco>
"""


#: The same leg with what a URDF has: no marker, and motors without activation.
PLAIN = re.sub('dyntype="filter" dynprm="0.02"|{delay}|<body name="marker".*?/>', "", LEG)


@dataclass
class Case:
    """An engine and the scene that it is tested on."""

    engine: str
    scene: Any

    @property
    def follows_c(self) -> bool:
        """Whether it simulates what MuJoCo does."""
        return self.engine != "isaacgym"

    @property
    def rounding(self) -> float:
        """How far a state that was restored leads from where it led before."""
        return 0.0 if self.follows_c else 2e-5

    def start(self, rows: int = ROWS) -> TensorPhysics:
        """A fresh engine; what it compiles is kept by the process (mjx) or on disk (warp)."""
        if self.engine == "warp":
            from embodied_rl.physics.warp import WarpPhysics

            settings = PhysicsSettings(engine="warp", decimation=DECIMATION)
            return WarpPhysics(self.scene, rows, settings, torch.device("cpu"))
        if self.engine == "isaacgym":
            from embodied_rl.physics.isaacgym import IsaacGymPhysics

            settings = PhysicsSettings(engine="isaacgym", decimation=DECIMATION)
            return IsaacGymPhysics(self.scene, rows, settings, torch.device("cpu"))
        from embodied_rl.physics.mjx import MjxPhysics

        physics = MjxPhysics(self.scene, rows, DECIMATION, torch.device("cpu"))
        # Compiled once: mjx does it anew for other fields.  tests/physics/test_parity.py holds the model that is shared by all.
        for name in OWN:
            physics.expand(name)
        physics.set_const(everyone(physics))
        return physics


@pytest.fixture(scope="module", params=["warp", "mjx"])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    engine = request.param
    if engine == "isaacgym":
        request.getfixturevalue("isaacgym_stand_in")
        yield Case(engine, scene_of(PLAIN))
        return
    pytest.importorskip({"warp": "mujoco_warp", "mjx": "mujoco.mjx"}[engine])
    if engine == "mjx":
        import jax

        jax.config.update("jax_disable_most_optimizations", True)  # soon compiled
    # mjx has no delays
    yield Case(engine, scene_of(LEG.format(delay='nsample="4" delay="0.012"' if engine == "warp" else "")))
    if engine == "mjx":
        jax.config.update("jax_disable_most_optimizations", False)  # pyright: ignore[reportPossiblyUnboundVariable]


#: Of tests that do not ask for MuJoCo's dynamics.
any_engine = pytest.mark.parametrize("case", ["warp", "mjx", "isaacgym"], indirect=True, scope="module")


def scene_of(text: str) -> SimpleNamespace:
    """The leg, with its foot for a frame."""
    model = mujoco.MjModel.from_xml_string(text)
    frames = (Frame("paw", model.body("calf").id, np.array([0.0, 0.0, -0.2]), np.array([0.6, 0.0, 0.8, 0.0])),)
    sensors = {"foot_contact": (slice(0, 1), (1, 1))}
    return SimpleNamespace(
        model=model, frames=frames, frame_orientation=True, sensors=sensors, joint_torque=True, foot_touchdown=False
    )


def states(case: Case, seed: int = 0, rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, velocities and controls, float32: tilted bodies at a height where some feet touch the ground."""
    rng, model = np.random.default_rng(seed), case.scene.model
    qpos = np.tile(model.qpos0, (rows, 1))
    qpos[:, 2] = rng.uniform(0.25, 0.45, rows)
    quat = rng.normal(size=(rows, 4)) * (1.0, 0.2, 0.2, 1.0)
    qpos[:, 3:7] = quat / np.linalg.norm(quat, axis=1, keepdims=True)
    low, high = model.jnt_range[1:].T
    qpos[:, 7:] = rng.uniform(low, high, size=(rows, model.nq - 7))
    ctrl = qpos[:, 7:] + rng.uniform(-0.3, 0.3, size=(rows, model.nu))
    single = lambda values: torch.tensor(values, dtype=torch.float32)  # noqa: E731
    return single(qpos), single(rng.normal(size=(rows, model.nv))), single(ctrl)


def begin(case: Case, seed: int = 0, rows: int = ROWS) -> tuple[TensorPhysics, Tensor]:
    physics = case.start(rows)
    qpos, qvel, ctrl = states(case, seed, rows)
    physics.write(everyone(physics), qpos=qpos, qvel=qvel)
    return physics, ctrl


def everyone(physics: TensorPhysics) -> Tensor:
    return torch.ones(physics.num_envs, dtype=torch.bool)


def mask(*rows: int) -> Tensor:
    return torch.isin(torch.arange(ROWS), torch.tensor(rows))


def outputs(physics: TensorPhysics) -> dict[str, Tensor]:
    """Everything that an engine hands out, copied; the state to the last bit."""
    physics.refresh()
    tensors = {name: getattr(physics, name) for name in ("frame_pos", "frame_lin_vel", "frame_quat")}
    return {name: tensor.clone() for name, tensor in tensors.items()} | physics.snapshot(torch.arange(physics.num_envs))


def same(one: dict[str, Tensor], other: dict[str, Tensor], rows: Tensor | slice = slice(None), within: float = 0.0) -> None:
    assert set(one) == set(other)
    for name in one:
        torch.testing.assert_close(
            one[name][rows], other[name][rows], rtol=within, atol=within, msg=lambda what, name=name: f"{name}: {what}"
        )


def play(physics: TensorPhysics, ctrl: Tensor, steps: int) -> list[dict[str, Tensor]]:
    trace = []
    for step in range(steps):
        physics.step(ctrl * (1.0 + 0.1 * np.sin(step)))
        trace.append(outputs(physics))
    return trace


def reference(model: mujoco.MjModel, qpos: Tensor, qvel: Tensor, ctrl: Tensor, **start: Any) -> mujoco.MjData:
    """One control step of C from this state; ctrl (nu,) or (decimation, nu)."""
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = qpos, qvel
    for name, value in start.items():
        getattr(data, name)[:] = value
    for row in np.broadcast_to(ctrl.numpy(), (DECIMATION, model.nu)):
        data.ctrl[:] = row
        mujoco.mj_step(model, data)
    return data


def agrees(physics: TensorPhysics, row: int, data: mujoco.MjData) -> None:
    """Qpos and qvel to what float32 keeps of four substeps of some thousand rad/s^2: a few 1e-6 of joints' 10 rad/s and more."""
    np.testing.assert_allclose(physics.qpos[row].numpy(), data.qpos, rtol=0, atol=1e-5)
    np.testing.assert_allclose(physics.qvel[row].numpy(), data.qvel, rtol=1e-4, atol=2e-4)


# --------------------------------------------------------------------------------------------------------------- a step


def test_a_step_fills_every_output(case: Case) -> None:
    physics, ctrl = begin(case)
    before = physics.qpos.clone(), physics.qvel.clone()
    frames = (physics.frame_pos, physics.frame_lin_vel, physics.frame_quat)
    for tensor in (*frames, physics.joint_torque, *physics.sensors.values()):
        tensor.fill_(torch.inf)
    physics.step(ctrl)
    physics.refresh()
    model = case.scene.model
    for row in range(ROWS):
        data = reference(model, before[0][row], before[1][row], ctrl[row])
        agrees(physics, row, data)
        torque = data.actuator_force.copy()
        touches = data.sensordata[: physics.sensors["foot_contact"].shape[1]] > 0
        mujoco.mj_kinematics(model, data)
        (frame,) = case.scene.frames
        place, quat = np.zeros(3), np.zeros(4)
        mujoco.mju_mulPose(place, quat, data.xpos[frame.body], data.xquat[frame.body], frame.position, frame.quat)
        np.testing.assert_allclose(physics.frame_pos[row, 0].numpy(), place, atol=2e-5)
        np.testing.assert_allclose(abs(physics.frame_quat[row, 0].numpy() @ quat), 1.0, atol=1e-5)
        np.testing.assert_allclose(physics.joint_torque[row].numpy(), torque, atol=1e-3)
        np.testing.assert_array_equal(physics.sensors["foot_contact"][row].numpy(), touches)
    assert all(tensor.isfinite().all() for tensor in outputs(physics).values())
    assert 0 < physics.sensors["foot_contact"].sum() < physics.sensors["foot_contact"].numel()
    assert not physics.unstable.any() and physics.drain_unstable() == []


@any_engine
def test_a_control_row_for_each_substep(case: Case) -> None:
    physics, ctrl = begin(case)
    before = physics.qpos.clone(), physics.qvel.clone()
    each = ctrl[:, None] + 0.3 * torch.randn(ROWS, DECIMATION, ctrl.shape[1], generator=torch.Generator().manual_seed(0))
    physics.step(each)
    for row in range(ROWS if case.follows_c else 0):
        agrees(physics, row, reference(case.scene.model, before[0][row], before[1][row], each[row]))
    steady, at_once = begin(case)[0], begin(case)[0]
    steady.step(ctrl[:, None].expand(-1, DECIMATION, -1))
    at_once.step(ctrl)
    same(outputs(steady), outputs(at_once))


@any_engine
def test_a_controller_sees_the_state_of_its_substep(case: Case) -> None:
    physics, ctrl = begin(case)
    seen = []

    def controller(given: Any, substep: int) -> Tensor:
        assert given is physics
        seen.append((given.qpos.clone(), given.qvel.clone()))
        return ctrl + 0.1 * substep

    before = physics.qpos.clone(), physics.qvel.clone()
    physics.step(torch.full_like(ctrl, torch.nan), controller)
    each = torch.stack([ctrl + 0.1 * substep for substep in range(DECIMATION)], dim=1)
    alone, _ = begin(case)
    alone.step(each)
    same(outputs(physics), outputs(alone))
    assert len(seen) == DECIMATION
    assert torch.equal(seen[0][0], before[0]) and torch.equal(seen[0][1], before[1])
    for row in range(ROWS if case.follows_c else 0):
        data = mujoco.MjData(case.scene.model)
        data.qpos[:], data.qvel[:] = before[0][row], before[1][row]
        for substep in range(DECIMATION):
            np.testing.assert_allclose(seen[substep][0][row].numpy(), data.qpos, atol=1e-5)
            data.ctrl[:] = each[row, substep]
            mujoco.mj_step(case.scene.model, data)
    assert not any(torch.equal(one[0], other[0]) for one, other in itertools.pairwise(seen))


@any_engine
def test_tensors_keep_their_address(case: Case) -> None:
    physics, ctrl = begin(case)

    def addresses() -> dict[str, int]:
        names = ("qpos", "qvel", "frame_pos", "frame_lin_vel", "frame_quat", "joint_torque", "unstable")
        return {n: t.data_ptr() for n, t in ({n: getattr(physics, n) for n in names} | physics.sensors).items()}

    before = addresses()
    state = physics.snapshot(torch.arange(ROWS))
    physics.step(ctrl)
    physics.step(ctrl, lambda *_: ctrl)
    physics.refresh()
    physics.reset(everyone(physics))
    physics.write(everyone(physics), qvel=torch.full_like(physics.qvel, torch.nan))
    physics.step(ctrl)
    physics.drain_unstable()
    physics.restore(torch.arange(ROWS), state)
    assert addresses() == before


# -------------------------------------------------------------------------------------------------------- write and reset


@any_engine
def test_write_sets_the_rows_of_its_mask_and_no_other(case: Case) -> None:
    physics, ctrl = begin(case)
    physics.step(ctrl)
    before, rows = outputs(physics), mask(1, 4)
    qpos, qvel, _ = states(case, seed=1)
    applied = torch.randn(ROWS, case.scene.model.nbody, 6, generator=torch.Generator().manual_seed(0))
    fields = {"xfrc_applied": applied} if "state.xfrc_applied" in before else {}
    if case.scene.model.nmocap:
        fields |= {"mocap_pos": torch.rand(ROWS, 1, 3)}
    physics.write(rows, qpos=qpos, qvel=qvel, **fields)
    after = outputs(physics)
    same(after, before, ~rows)
    for name, value in ({"qpos": qpos, "qvel": qvel} | fields).items():
        assert torch.equal(after[f"state.{name}"][rows], value[rows]), name
    assert torch.equal(after["joint_torque"], before["joint_torque"])
    untouched = [name for name in before if name.startswith("sensor.") or name == "state.qacc_warmstart"]
    assert all(torch.equal(after[name], before[name]) for name in untouched)


def test_applied_forces_act(case: Case) -> None:
    physics, ctrl = begin(case)
    applied = torch.zeros(ROWS, case.scene.model.nbody, 6)
    applied[1, case.scene.model.body("base").id] = torch.tensor((20.0, 10.0, 5.0, 1.0, 2.0, 3.0))
    qpos, qvel, _ = states(case)
    qpos[:, 2] = 5.0  # in the air
    physics.write(everyone(physics), qpos=qpos, qvel=qvel, xfrc_applied=applied)
    physics.step(ctrl)
    for row in (0, 1):
        agrees(physics, row, reference(case.scene.model, qpos[row], qvel[row], ctrl[row], xfrc_applied=applied[row]))


@any_engine
def test_an_empty_mask_does_nothing(case: Case) -> None:
    physics, ctrl = begin(case)
    physics.step(ctrl)
    before, nobody = outputs(physics), mask()
    physics.write(nobody, qpos=torch.zeros_like(physics.qpos))
    physics.reset(nobody)
    same(outputs(physics), before)


@any_engine
def test_reset_leaves_a_row_as_a_fresh_simulation(case: Case) -> None:
    physics, ctrl = begin(case)
    if case.follows_c:
        physics.write(everyone(physics), xfrc_applied=torch.ones(ROWS, case.scene.model.nbody, 6))
    for _ in range(3):
        physics.step(ctrl)
    before, rows = outputs(physics), mask(0, 3)
    physics.reset(rows)
    after = outputs(physics)
    same(after, before, ~rows)
    data = mujoco.MjData(case.scene.model)  # as mj_resetData leaves it: activations, warm start and applied forces among it
    for name in [name for name in after if name.startswith("state.")]:
        clean = np.broadcast_to(getattr(data, name.removeprefix("state.")), after[name].shape)
        np.testing.assert_array_equal(after[name][rows].numpy(), clean[:2].astype(np.float32), err_msg=name)
    for name in [name for name in after if name.startswith("sensor.") or name == "joint_torque"]:
        assert not after[name][rows].any(), name
    # and its next step is a first step: nothing of the past warm-starts it
    qpos, qvel, _ = states(case, seed=2)
    physics.write(rows, qpos=qpos, qvel=qvel)
    physics.step(ctrl)
    for row in (0, 3) if case.follows_c else ():
        agrees(physics, row, reference(case.scene.model, qpos[row], qvel[row], ctrl[row]))


# ------------------------------------------------------------------------------------------- models of their own, snapshots


@any_engine
def test_expand_gives_a_copy_of_the_models_values(case: Case) -> None:
    physics, model = case.start(), case.scene.model
    for name in ("body_mass", "geom_friction", "actuator_gainprm", "body_inertia", "dof_armature"):
        values = physics.expand(name)
        own = getattr(model, name)
        assert values.shape[0] == ROWS and values.dtype == torch.float32
        # engines may keep fewer columns of the actuators' parameters than C has
        np.testing.assert_allclose(values[-1].numpy(), own[..., : values.shape[-1]], rtol=1e-6)
        values.fill_(7.0)
        np.testing.assert_allclose(physics.expand(name)[-1].numpy(), own[..., : values.shape[-1]], rtol=1e-6)


def diverse(case: Case) -> tuple[TensorPhysics, Tensor, dict[str, Tensor]]:
    """A batch in which every row has its own friction, masses, armature and gains."""
    physics, ctrl = begin(case)
    generator = torch.Generator().manual_seed(0)
    fields = {}
    for name in OWN:
        values = physics.expand(name)
        fields[name] = values * (0.6 + 0.8 * torch.rand(values.shape, generator=generator))
    fields["actuator_biasprm"][..., 1] = -fields["actuator_gainprm"][..., 0]  # position drives still
    physics.write(everyone(physics), **fields)
    physics.set_const(everyone(physics))
    return physics, ctrl, fields


def edited(model: mujoco.MjModel, fields: dict[str, Tensor], row: int) -> mujoco.MjModel:
    model = copy.deepcopy(model)
    for name, values in fields.items():
        getattr(model, name)[..., : values.shape[-1]] = values[row]
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def test_expanded_fields_act_as_an_edited_model_does(case: Case) -> None:
    physics, ctrl, fields = diverse(case)
    before = physics.qpos.clone(), physics.qvel.clone()
    physics.step(ctrl)
    for row in range(ROWS):
        model = edited(case.scene.model, fields, row)
        agrees(physics, row, reference(model, before[0][row], before[1][row], ctrl[row]))
        shared = reference(case.scene.model, before[0][row], before[1][row], ctrl[row])
        assert np.abs(shared.qvel - physics.qvel[row].numpy()).max() > 1e-2


def test_set_const_derives_what_mujoco_does_for_the_rows_in_its_mask(case: Case) -> None:
    physics, model = case.start(), case.scene.model
    mass = physics.expand("body_mass") * torch.linspace(1.0, 2.0, ROWS)[:, None]
    physics.write(everyone(physics), body_mass=mass)
    physics.set_const(mask(2, 5))
    names = [name for name in physics._model_fields if name != "body_mass"]
    assert {"body_subtreemass", "body_invweight0", "dof_invweight0"} <= set(names)
    for row in range(ROWS):
        expected = edited(model, {"body_mass": mass}, row) if row in (2, 5) else model
        for name in names:
            found = physics._model_fields[name][row].numpy()
            np.testing.assert_allclose(found, getattr(expected, name).reshape(found.shape), rtol=1e-5, err_msg=f"{row} {name}")


@any_engine
def test_a_field_that_an_engine_has_once_for_all(case: Case) -> None:
    physics = case.start()
    for name in ("geom_type", "no_such_field"):
        with pytest.raises(UserError) as caught:
            physics.expand(name)
        assert str(caught.value).startswith(f"physics.engine: {case.engine} has no values of {name} per simulation")


@any_engine
def test_a_snapshot_restores_exactly(case: Case) -> None:
    physics, ctrl, _ = diverse(case)
    play(physics, ctrl, 3)
    rows = torch.arange(ROWS)
    state = physics.snapshot(rows)
    assert all(len(tensor) == ROWS for tensor in state.values())
    held, first = outputs(physics), play(physics, ctrl, 8)
    physics.restore(rows, state)
    same(outputs(physics), held)
    for found, expected in zip(play(physics, ctrl, 8), first, strict=True):
        same(found, expected, within=case.rounding)


@any_engine
def test_a_snapshot_moves_into_other_rows_of_another_batch(case: Case) -> None:
    physics, ctrl, _ = diverse(case)
    play(physics, ctrl, 3)
    rows, places = torch.tensor([4, 1]), torch.tensor([0, 5])
    state = physics.snapshot(rows)
    first = play(physics, ctrl, 8)
    other, their_ctrl = begin(case, seed=3)
    alone, _ = begin(case, seed=3)
    for name in [name for name in state if name.startswith("model.")]:
        alone.expand(name.removeprefix("model."))
    other.restore(places, state)
    their_ctrl[places] = ctrl[rows]
    stay = ~torch.isin(torch.arange(ROWS), places)
    lone_trace = play(alone, their_ctrl, 8)
    for found, expected, lone in zip(play(other, their_ctrl, 8), first, lone_trace, strict=True):
        moved = {name: found[name][places] for name in found}
        same(moved, {name: expected[name][rows] for name in expected}, within=case.rounding)
        same(found, lone, stay)


# ------------------------------------------------------------------------------------------------- simulations that blow up


def replay(model: mujoco.MjModel, state: np.ndarray, ctrl: np.ndarray) -> mujoco.MjData:
    data = mujoco.MjData(model)
    mujoco.mj_setState(model, data, state, STATE)
    for row in ctrl:
        data.ctrl[:] = row
        mujoco.mj_step(model, data)
    return data


def leads_on(case: Case, dump: dict) -> None:
    """Each state of a dump but the last is where the one before it leads."""
    model = case.scene.model
    for step in range(len(dump["states"]) - 2 if case.follows_c else 0):
        reached, following = replay(model, dump["states"][step], dump["ctrl"][step]), mujoco.MjData(model)
        mujoco.mj_setState(model, following, dump["states"][step + 1], STATE)
        np.testing.assert_allclose(reached.qpos, following.qpos, atol=1e-5)
        np.testing.assert_allclose(reached.act, following.act, atol=1e-5)


def blow_up(physics: TensorPhysics, rows: Tensor, value: float = float("nan")) -> None:
    blown = physics.qvel.clone()
    blown[:, 7] = value
    physics.write(rows, qvel=blown)


@any_engine
@pytest.mark.parametrize(
    ("value", "substeps"), [(1e12, False), (float("nan"), True), pytest.param(float("inf"), False, marks=pytest.mark.slow)]
)
def test_a_row_that_blows_up_is_quarantined_alone(case: Case, value: float, substeps: bool) -> None:
    physics, ctrl = begin(case)
    healthy, _ = begin(case)
    if substeps:
        ctrl = ctrl[:, None] + torch.linspace(-0.2, 0.2, DECIMATION)[:, None]
    for _ in range(6):  # more than the history holds
        physics.step(ctrl)
        healthy.step(ctrl)
    bad = mask(2)
    blow_up(physics, bad, value)
    for _ in range(3):
        physics.step(ctrl)
        healthy.step(ctrl)
        found = outputs(physics)
        same(found, outputs(healthy), ~bad)
        assert all(tensor.isfinite().all() for tensor in found.values())
        assert physics.unstable.tolist() == bad.tolist()
        if bad.any():
            fresh = mujoco.MjData(case.scene.model)
            np.testing.assert_array_equal(physics.qpos[2].numpy(), fresh.qpos.astype(np.float32))
            assert not physics.qvel[2].any()
            assert not case.follows_c or not found["state.qacc_warmstart"][2].any()
            assert not any(found[name][2].any() for name in found if name.startswith("sensor.") or name == "joint_torque")
            bad = mask()  # from here on the row is a fresh one
            healthy.restore(torch.tensor([2]), physics.snapshot(torch.tensor([2])))
    (dump,) = physics.drain_unstable()
    assert physics.drain_unstable() == []
    assert dump["row"] == 2
    assert dump["states"].shape[0] == dump["ctrl"].shape[0] == 4 and dump["ctrl"].shape[1:] == (DECIMATION, case.scene.model.nu)
    data = replay(case.scene.model, dump["states"][-1], dump["ctrl"][-1])
    assert not np.all(np.abs(data.qvel) < 1e10)
    leads_on(case, dump)


@any_engine
def test_a_row_that_blew_up_before_has_a_history_of_its_own(case: Case) -> None:
    """What the ring holds from before the last drain would lead nowhere."""
    physics, ctrl = begin(case)
    for _ in range(6):
        physics.step(ctrl)
    blow_up(physics, mask(2))
    for _ in range(3):
        physics.step(ctrl)
    assert len(physics.drain_unstable()) == 1
    for steps in (1, 2):
        qpos, qvel, _ = states(case)
        physics.write(mask(2), qpos=qpos, qvel=qvel)
        for _ in range(steps):
            physics.step(ctrl)
        blow_up(physics, mask(2))
        physics.step(ctrl)
        (dump,) = physics.drain_unstable()
        assert len(dump["states"]) == len(dump["ctrl"]) == steps + 1
        leads_on(case, dump)
        assert not np.all(np.abs(replay(case.scene.model, dump["states"][-1], dump["ctrl"][-1]).qvel) < 1e10)


@any_engine
def test_a_dump_holds_the_controls_of_a_controller(case: Case) -> None:
    physics, ctrl = begin(case)
    for _ in range(5):
        physics.step(torch.zeros_like(ctrl), lambda _, substep: ctrl + 0.1 * substep)
    blow_up(physics, mask(1))
    physics.step(ctrl)
    (dump,) = physics.drain_unstable()
    expected = torch.stack([ctrl[1] + 0.1 * substep for substep in range(DECIMATION)])
    np.testing.assert_array_equal(dump["ctrl"][-2], expected.double().numpy())
    leads_on(case, dump)


@any_engine
def test_a_dump_holds_the_rows_own_model(case: Case) -> None:
    physics, ctrl, fields = diverse(case)
    blow_up(physics, mask(1))
    physics.step(ctrl)
    (dump,) = physics.drain_unstable()
    for name, values in fields.items():
        np.testing.assert_array_equal(dump[f"model.{name}"], values[1].double().numpy())


@any_engine
def test_many_blow_ups_are_all_flagged_and_a_few_recorded(case: Case) -> None:
    rows = 30 if case.engine == "warp" else ROWS  # mjx compiles for each number of rows
    physics, ctrl = begin(case, rows=rows)
    blow_up(physics, everyone(physics))
    physics.step(ctrl)
    assert physics.unstable.all()
    assert 1 <= len(physics.drain_unstable()) <= 8
    assert physics.drain_unstable() == []
    physics.step(ctrl)
    assert not physics.unstable.any()
