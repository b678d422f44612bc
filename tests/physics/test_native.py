"""The native engine against single simulations stepped with mj_step."""

from __future__ import annotations

from types import SimpleNamespace

import mujoco
import numpy as np
import pytest
import torch

from embodied_rl.config.page import PhysicsSettings
from embodied_rl.physics.native import NativePhysics
from embodied_rl.robot import load_robot
from embodied_rl.scene import Scene, build_scene

DECIMATION = 4
NEEDS = {"foot_contact", "foot_frames", "foot_orientation", "joint_torque"}
CASES = [(robot, collisions) for robot in ("go2", "go1", "a1", "anymal_c", "g1", "g1_legs") for collisions in ("feet", "full")]
STATE = mujoco.mjtState.mjSTATE_INTEGRATION
EVERY = slice(None)


def _scene(robot: str = "go2", collisions: str = "feet") -> Scene:
    groups = {"contact:thighs", "contact:base"} if collisions == "full" else set()
    return build_scene(
        load_robot(robot), collisions=collisions, physics=PhysicsSettings(), needs=NEEDS | groups, dry_friction=False
    )


@pytest.fixture(scope="module")
def scene() -> Scene:
    return _scene()


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def any_scene(request) -> Scene:
    return _scene(*request.param)


def _physics(scene: Scene, count: int, threads: int = 2, poison: float | None = None) -> NativePhysics:
    physics = NativePhysics(scene, count, DECIMATION, threads)
    if poison is not None:  # what the engine does not fill stays visible
        kinematic = (physics.frame_pos, physics.frame_lin_vel, physics.frame_quat)
        for tensor in (*kinematic, physics.joint_torque, *physics.sensors.values()):
            tensor.fill_(poison)
    return physics


def _random_states(scene: Scene, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Robots near the ground in all attitudes, so that most touch it; float32."""
    rng = np.random.default_rng(seed)
    model, robot = scene.model, scene.robot
    qpos = np.tile(model.qpos0, (count, 1))
    qpos[:, :3] = rng.uniform((-1, -1, 0.08), (1, 1, 0.4), size=(count, 3))
    quat = rng.normal(size=(count, 4)) * (1.0, 0.3, 0.3, 1.0)
    qpos[:, 3:7] = quat / np.linalg.norm(quat, axis=1, keepdims=True)
    default = np.array(robot.default_joint_pos)
    qpos[:, list(scene.qpos_address)] = default + rng.uniform(-0.3, 0.3, size=(count, len(default)))
    qvel = rng.normal(size=(count, model.nv))
    ctrl = default + rng.uniform(-0.5, 0.5, size=(count, len(default)))
    single = lambda values: torch.tensor(values, dtype=torch.float32)  # noqa: E731
    return single(qpos), single(qvel), single(ctrl)


def _everyone(physics: NativePhysics) -> torch.Tensor:
    return torch.ones(physics.num_envs, dtype=torch.bool)


def _start(scene: Scene, count: int, seed: int = 0, **options) -> tuple[NativePhysics, torch.Tensor]:
    physics = _physics(scene, count, **options)
    qpos, qvel, ctrl = _random_states(scene, count, seed)
    physics.write(_everyone(physics), qpos=qpos, qvel=qvel)
    return physics, ctrl


def _outputs(physics: NativePhysics) -> dict[str, torch.Tensor]:
    physics.refresh()
    names = ("qpos", "qvel", "frame_pos", "frame_lin_vel", "frame_quat", "joint_torque")
    named = {name: getattr(physics, name) for name in names}
    return {name: tensor.clone() for name, tensor in (named | physics.sensors).items()}


def _assert_identical(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rows: slice | torch.Tensor = EVERY
) -> None:
    for name in expected:
        assert torch.equal(found[name][rows], expected[name][rows]), name


def _contacts(scene: Scene, model: mujoco.MjModel, data: mujoco.MjData) -> dict[str, np.ndarray]:
    """Contact flags, gathered from MuJoCo's contacts and not from its sensors."""
    feet = [tuple(model.geom(name).id for name in foot.geoms) for foot in scene.robot.feet]
    all_feet = {geom for geoms in feet for geom in geoms}
    found = {"foot_contact": np.zeros(len(feet))}
    found |= {name: np.zeros(shape[0]) for name, (_, shape) in scene.sensors.items() if name.startswith("contact:")}
    for contact in data.contact:
        for geom in (contact.geom1, contact.geom2):
            for foot, geoms in enumerate(feet):
                if geom in geoms:
                    found["foot_contact"][foot] = 1.0
            body = model.body(model.geom_bodyid[geom]).name
            for name in found:
                group = scene.robot.bodies.get(name.removeprefix("contact:"), ())
                if name.startswith("contact:") and body in group and geom not in all_feet:
                    found[name][group.index(body)] = 1.0
    return found


def _mj_step(scene: Scene, model, qpos, qvel, ctrl) -> dict[str, np.ndarray]:
    """One control step of one simulation; ctrl is (nu,) or (decimation, nu)."""
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = qpos, qvel
    for row in np.broadcast_to(ctrl, (DECIMATION, model.nu)):
        data.ctrl[:] = row
        mujoco.mj_step(model, data)
    state = {"qpos": data.qpos.copy(), "qvel": data.qvel.copy(), "joint_torque": data.actuator_force.copy()}
    state |= _contacts(scene, model, data)
    mujoco.mj_forward(model, data)
    sites = [model.site(foot.site).id for foot in scene.robot.feet]
    velocity = np.zeros((len(sites), 6))
    for row, site in zip(velocity, sites, strict=True):
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_SITE, site, row, 0)
    quat = np.zeros((len(sites), 4))
    for row, site in zip(quat, sites, strict=True):
        mujoco.mju_mat2Quat(row, data.site_xmat[site])
        row *= np.sign(row[0])  # the engines' has w >= 0
    return state | {"frame_pos": data.site_xpos[sites].copy(), "frame_lin_vel": velocity[:, 3:], "frame_quat": quat}


def _compare(scene: Scene, physics: NativePhysics, rows, models, states, ctrl) -> dict[str, np.ndarray]:
    """Every output of the given rows against mj_step's; returns what was expected."""
    qpos, qvel = states
    found = _outputs(physics)
    expected = [_mj_step(scene, m, qpos[row], qvel[row], ctrl[row]) for row, m in zip(rows, models, strict=True)]
    stacked = {name: np.stack([one[name] for one in expected]) for name in expected[0]}
    assert set(found) == set(stacked)
    for name, values in stacked.items():
        if name in ("qpos", "qvel", "joint_torque", "foot_contact") or name.startswith("contact:"):
            np.testing.assert_array_equal(found[name][rows].numpy(), values.astype(np.float32), err_msg=name)
        else:
            np.testing.assert_allclose(found[name][rows].numpy(), values, atol=3e-5, err_msg=name)
    return stacked


# --------------------------------------------------------------------------------------------------------------- a step


def test_a_step_equals_mj_step(any_scene):
    physics, ctrl = _start(any_scene, 200, poison=float("inf"))
    before = physics.qpos.clone(), physics.qvel.clone()
    physics.step(ctrl)
    rows = list(range(200))
    expected = _compare(any_scene, physics, rows, [any_scene.model] * 200, before, ctrl.numpy())
    assert not physics.unstable.any() and physics.drain_unstable() == []
    # the states are such that every flag is up in some rows and down in others
    for name in expected:
        if "contact" in name:
            assert np.all((expected[name].mean(0) > 0.0) & (expected[name].mean(0) < 1.0)), name
    torque = np.abs(expected["joint_torque"]) / np.array(any_scene.robot.effort_limit)
    assert torque.max() <= 1.0 + 1e-9 and (torque > 1.0 - 1e-9).any()


def test_a_control_row_for_each_substep(scene):
    physics, ctrl = _start(scene, 20)
    before = physics.qpos.clone(), physics.qvel.clone()
    each = ctrl[:, None] + 0.3 * torch.randn(20, DECIMATION, ctrl.shape[1], generator=torch.Generator().manual_seed(0))
    physics.step(each)
    _compare(scene, physics, list(range(20)), [scene.model] * 20, before, each.numpy())
    steady, _ = _start(scene, 20)
    steady.step(ctrl[:, None].expand(-1, DECIMATION, -1))
    at_once, _ = _start(scene, 20)
    at_once.step(ctrl)
    _assert_identical(_outputs(steady), _outputs(at_once))


def test_a_controller_sees_the_state_of_its_substep(scene):
    physics, ctrl = _start(scene, 5)
    alone, _ = _start(scene, 5)
    seen = []

    def controller(given, substep: int) -> torch.Tensor:
        assert given is physics
        seen.append((substep, given.qpos.clone(), given.qvel.clone()))
        return ctrl + 0.1 * substep

    physics.step(torch.full_like(ctrl, torch.nan), controller)
    each = torch.stack([ctrl + 0.1 * substep for substep in range(DECIMATION)], dim=1)
    alone.step(each)
    _assert_identical(_outputs(physics), _outputs(alone))
    data = mujoco.MjData(scene.model)
    for row in range(5):
        mujoco.mj_resetData(scene.model, data)
        data.qpos[:], data.qvel[:] = seen[0][1][row], seen[0][2][row]
        for substep, qpos, qvel in seen:
            np.testing.assert_array_equal(qpos[row].numpy(), data.qpos.astype(np.float32))
            np.testing.assert_array_equal(qvel[row].numpy(), data.qvel.astype(np.float32))
            data.ctrl[:] = each[row, substep]
            mujoco.mj_step(scene.model, data)
    assert [substep for substep, _, _ in seen] == list(range(DECIMATION))


def test_threads_change_no_bit():
    scene, results = _scene("go2", "full"), []
    for threads in (1, 2, 3):
        physics, ctrl = _start(scene, 33, threads=threads)
        for _ in range(5):
            physics.step(ctrl)
        results.append(_outputs(physics) | physics.snapshot(torch.arange(33)))
    _assert_identical(results[1], results[0])
    _assert_identical(results[2], results[0])


def test_a_standing_robot_is_carried_by_its_feet(scene):
    physics = _physics(scene, 1)
    pose = torch.tensor(scene.model.qpos0, dtype=torch.float32)
    default = torch.tensor(scene.robot.default_joint_pos)
    pose[2] = scene.robot.base_height
    pose[list(scene.qpos_address)] = default
    physics.write(_everyone(physics), qpos=pose[None], qvel=torch.zeros(1, scene.model.nv))
    for _ in range(150):
        physics.step(default[None])
    assert physics.sensors["foot_contact"].tolist() == [[1.0] * 4]
    assert float(physics.qpos[0, 2]) > 0.8 * scene.robot.base_height and float(physics.qvel[0, :3].norm()) < 0.05


def test_friction_of_the_feet_is_the_friction_of_the_contact(scene):
    """A robot slides on stiff legs: it must slow down as its feet's friction says, not as the ground's does."""
    frictions = (0.2, 0.4, 0.6)
    robot, model = scene.robot, scene.model
    physics = _physics(scene, len(frictions))
    everyone = _everyone(physics)
    pose = torch.tensor(model.qpos0, dtype=torch.float32).repeat(len(frictions), 1)
    default = torch.tensor(robot.default_joint_pos).repeat(len(frictions), 1)
    pose[:, 2] = robot.base_height
    pose[:, list(scene.qpos_address)] = default
    friction = physics.expand("geom_friction")
    for row, value in enumerate(frictions):
        friction[row, list(scene.foot_geoms), 0] = value
    stiffness, bias = physics.expand("actuator_gainprm"), physics.expand("actuator_biasprm")
    stiffness[..., 0], bias[..., 1], bias[..., 2] = 500.0, -500.0, -10.0  # legs that do not fold
    force = physics.expand("actuator_forcerange")
    force[:] = torch.tensor((-1e4, 1e4))
    physics.write(
        everyone,
        geom_friction=friction,
        actuator_gainprm=stiffness,
        actuator_biasprm=bias,
        actuator_forcerange=force,
        qpos=pose,
        qvel=torch.zeros(len(frictions), model.nv),
    )
    for _ in range(40):  # settle
        physics.step(default)
    push = physics.qvel.clone()
    push[:, 1] = 2.0  # sideways, where the stance does not tip over
    physics.write(everyone, qvel=push)
    speeds = []
    for _ in range(5):
        physics.step(default)
        speeds.append(physics.qvel[:, 1].clone())
    slowdown = (2.0 - speeds[-1].numpy()) / (9.81 * 5 * DECIMATION * model.opt.timestep)
    np.testing.assert_allclose(slowdown, frictions, rtol=0.15)


# -------------------------------------------------------------------------------------------------------- write and reset


def test_write_sets_the_rows_of_its_mask_and_no_other(scene):
    physics, ctrl = _start(scene, 6)
    physics.step(ctrl)
    before, rows = _outputs(physics) | physics.snapshot(torch.arange(6)), torch.tensor([0, 1, 0, 0, 1, 0]).bool()
    qpos, qvel, _ = _random_states(scene, 6, seed=1)
    applied = torch.randn(6, scene.model.nbody, 6)
    physics.write(rows, qpos=qpos, qvel=qvel, xfrc_applied=applied)
    after = _outputs(physics) | physics.snapshot(torch.arange(6))
    _assert_identical(after, before, ~rows)
    assert torch.equal(after["qpos"][rows], qpos[rows]) and torch.equal(after["qvel"][rows], qvel[rows])
    assert torch.equal(after["joint_torque"], before["joint_torque"])
    data = mujoco.MjData(scene.model)
    for row in torch.nonzero(rows)[:, 0]:
        mujoco.mj_setState(scene.model, data, after["integration"][row].numpy(), STATE)
        np.testing.assert_array_equal(data.xfrc_applied, applied[row].double())
        np.testing.assert_array_equal(data.qpos, qpos[row].double())


def test_applied_forces_act(scene):
    physics, ctrl = _start(scene, 2)
    qpos, qvel, _ = _random_states(scene, 1)
    qpos[:, 2] = 5.0  # in the air
    applied = torch.zeros(2, scene.model.nbody, 6)
    applied[1, scene.base_body, 0] = 100.0
    physics.write(_everyone(physics), qpos=qpos.expand(2, -1), qvel=0 * qvel.expand(2, -1), xfrc_applied=applied)
    ctrl = torch.tensor(scene.robot.default_joint_pos).expand(2, -1)
    physics.step(ctrl)
    data = mujoco.MjData(scene.model)
    data.qpos[:], data.ctrl[:], data.xfrc_applied[:] = qpos[0], ctrl[0], applied[1]
    mujoco.mj_step(scene.model, data, DECIMATION)
    np.testing.assert_array_equal(physics.qvel[1].numpy(), data.qvel.astype(np.float32))
    assert physics.qvel[1, 0] - physics.qvel[0, 0] > 0.1


def test_an_empty_mask_does_nothing(scene):
    physics, ctrl = _start(scene, 3)
    physics.step(ctrl)
    before = _outputs(physics) | physics.snapshot(torch.arange(3))
    nobody = torch.zeros(3, dtype=torch.bool)
    physics.write(nobody, qpos=torch.zeros(3, scene.model.nq))
    physics.reset(nobody)
    _assert_identical(_outputs(physics) | physics.snapshot(torch.arange(3)), before)


def test_reset_leaves_a_row_as_a_fresh_simulation(scene):
    physics, ctrl = _start(scene, 4)
    physics.write(_everyone(physics), xfrc_applied=torch.ones(4, scene.model.nbody, 6))
    for _ in range(3):
        physics.step(ctrl)
    before = _outputs(physics) | physics.snapshot(torch.arange(4))
    rows = torch.tensor([1, 0, 0, 1]).bool()
    physics.reset(rows)
    after = _outputs(physics) | physics.snapshot(torch.arange(4))
    _assert_identical(after, before, ~rows)
    data, clean = mujoco.MjData(scene.model), np.zeros(mujoco.mj_stateSize(scene.model, STATE))
    mujoco.mj_getState(scene.model, data, clean, STATE)
    for row in torch.nonzero(rows)[:, 0]:
        # warm start, time, controls and applied forces among it
        np.testing.assert_array_equal(after["integration"][row].numpy(), clean)
        for name in (*physics.sensors, "joint_torque"):
            assert not after[name][row].any(), name
    # and its next step is a first step: nothing of the past warm-starts it
    qpos, qvel, _ = _random_states(scene, 4, seed=2)
    physics.write(rows, qpos=qpos, qvel=qvel)
    physics.step(ctrl)
    chosen = torch.nonzero(rows)[:, 0].tolist()
    _compare(scene, physics, chosen, [scene.model] * 2, (qpos, qvel), ctrl.numpy())


def test_refresh_is_of_the_present_state(scene):
    physics, _ = _start(scene, 8, poison=float("inf"))
    physics.refresh()
    for row in range(8):
        data = mujoco.MjData(scene.model)
        data.qpos[:] = physics.qpos[row]
        mujoco.mj_kinematics(scene.model, data)
        feet = np.array([data.site(foot.site).xpos for foot in scene.robot.feet])
        np.testing.assert_allclose(physics.frame_pos[row].numpy(), feet, atol=1e-5)
    assert physics.frame_lin_vel.isfinite().all()


def test_tensors_keep_their_address(scene):
    physics, ctrl = _start(scene, 3)

    def addresses() -> dict[str, int]:
        names = ("qpos", "qvel", "frame_pos", "frame_lin_vel", "frame_quat", "joint_torque", "unstable")
        return {n: t.data_ptr() for n, t in ({n: getattr(physics, n) for n in names} | physics.sensors).items()}

    before = addresses()
    state = physics.snapshot(torch.arange(3))
    physics.step(ctrl)
    physics.refresh()
    physics.reset(_everyone(physics))
    physics.restore(torch.arange(3), state)
    assert addresses() == before


# ------------------------------------------------------------------------------------------- models of their own, snapshots


def _diverse(scene: Scene, count: int) -> tuple[NativePhysics, torch.Tensor, dict[str, torch.Tensor]]:
    """A batch in which every row has its own friction, mass, centre of mass, armature and gains."""
    physics, ctrl = _start(scene, count)
    generator = torch.Generator().manual_seed(0)
    names = "geom_friction body_mass body_inertia body_ipos dof_armature actuator_gainprm actuator_biasprm dof_frictionloss"
    fields = {}
    for name in names.split():
        values = physics.expand(name)
        fields[name] = values * (0.8 + 0.4 * torch.rand(values.shape, generator=generator))
    physics.write(_everyone(physics), **fields)
    physics.set_const(_everyone(physics))
    return physics, ctrl, fields


def test_expand_gives_a_copy_of_the_models_values(scene):
    physics = _physics(scene, 3)
    mass = physics.expand("body_mass")
    assert mass.shape == (3, scene.model.nbody) and mass.dtype == torch.float32
    np.testing.assert_array_equal(mass[2].numpy(), scene.model.body_mass.astype(np.float32))
    mass.fill_(7.0)
    np.testing.assert_array_equal(physics.expand("body_mass")[2].numpy(), scene.model.body_mass.astype(np.float32))


def test_expanded_fields_act_as_an_edited_model_does(any_scene):
    physics, ctrl, fields = _diverse(any_scene, 12)
    before = physics.qpos.clone(), physics.qvel.clone()
    physics.step(ctrl)
    models = []
    for row in range(12):
        model = _copy(any_scene.model)
        for name, values in fields.items():
            getattr(model, name)[:] = values[row]
        mujoco.mj_setConst(model, mujoco.MjData(model))
        models.append(model)
    expected = _compare(any_scene, physics, list(range(12)), models, before, ctrl.numpy())
    shared = [_mj_step(any_scene, any_scene.model, before[0][r], before[1][r], ctrl[r].numpy()) for r in range(12)]
    assert all(np.abs(shared[r]["qvel"] - expected["qvel"][r]).max() > 1e-4 for r in range(12))


def _copy(model: mujoco.MjModel) -> mujoco.MjModel:
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return mujoco.MjModel.from_binary_path("model.mjb", {"model.mjb": buffer.tobytes()})


def _run(physics: NativePhysics, ctrl: torch.Tensor, steps: int) -> list[dict[str, torch.Tensor]]:
    trace = []
    for step in range(steps):
        physics.step(ctrl * (1.0 + 0.1 * np.sin(step)))
        trace.append(_outputs(physics))
    return trace


def test_a_snapshot_restores_exactly(any_scene):
    physics, ctrl, _ = _diverse(any_scene, 5)
    _run(physics, ctrl, 3)
    everyone = torch.arange(5)
    state = physics.snapshot(everyone)
    assert all(len(tensor) == 5 for tensor in state.values())
    held = _outputs(physics)
    first = _run(physics, ctrl, 20)
    physics.restore(everyone, state)
    _assert_identical(_outputs(physics), held)
    for found, expected in zip(_run(physics, ctrl, 20), first, strict=True):
        _assert_identical(found, expected)


def test_a_snapshot_moves_into_other_rows_of_another_batch(scene):
    physics, ctrl, _ = _diverse(scene, 5)
    _run(physics, ctrl, 3)
    rows, places = torch.tensor([4, 1]), torch.tensor([0, 6])
    state = physics.snapshot(rows)
    state = {name: tensor.clone() for name, tensor in state.items()}
    held = _outputs(physics)
    first = _run(physics, ctrl, 20)
    other, their_ctrl = _start(scene, 8, seed=3)
    alone, _ = _start(scene, 8, seed=3)
    other.restore(places, state)
    moved = _outputs(other)
    for name, values in held.items():
        assert torch.equal(moved[name][places], values[rows]), name
    their_ctrl[places] = ctrl[rows]
    stay = torch.tensor([row for row in range(8) if row not in places.tolist()])
    lone_trace = _run(alone, their_ctrl, 20)
    for found, expected, lone in zip(_run(other, their_ctrl, 20), first, lone_trace, strict=True):
        for name in expected:
            assert torch.equal(found[name][places], expected[name][rows]), name
        assert torch.equal(found["qpos"][stay], lone["qpos"][stay])


# ------------------------------------------------------------------------------------------------- simulations that blow up


def _replay(model: mujoco.MjModel, dump: dict) -> mujoco.MjData:
    data = mujoco.MjData(model)
    mujoco.mj_setState(model, data, dump["states"][-1], STATE)
    for row in dump["ctrl"][-1]:
        data.ctrl[:] = row
        mujoco.mj_step(model, data)
    return data


@pytest.mark.parametrize("value", [1e12, float("nan"), float("inf")])
@pytest.mark.parametrize("substeps", [False, True])
def test_a_row_that_blows_up_is_quarantined_alone(scene, value, substeps):
    physics, ctrl = _start(scene, 6)
    healthy, _ = _start(scene, 6)
    if substeps:
        ctrl = ctrl[:, None] + torch.linspace(-0.2, 0.2, DECIMATION)[:, None]
    for _ in range(6):  # more than the history holds
        physics.step(ctrl)
        healthy.step(ctrl)
    last_good = physics.snapshot(torch.tensor([2]))["integration"].clone()
    bad = torch.tensor([0, 0, 1, 0, 0, 0]).bool()
    blown = physics.qvel.clone()
    blown[2, 7] = value
    physics.write(bad, qvel=blown)
    for _ in range(3):
        physics.step(ctrl)
        healthy.step(ctrl)
        found = _outputs(physics)
        _assert_identical(found, _outputs(healthy), ~bad)
        assert all(tensor.isfinite().all() for tensor in found.values())
        assert physics.unstable.tolist() == bad.tolist()
        if bad.any():
            data, clean = mujoco.MjData(scene.model), np.zeros(last_good.shape[1])
            mujoco.mj_getState(scene.model, data, clean, STATE)
            np.testing.assert_array_equal(physics.snapshot(torch.tensor([2]))["integration"][0].numpy(), clean)
            assert not any(found[name][2].any() for name in (*physics.sensors, "joint_torque"))
            bad = torch.zeros_like(bad)  # from here on the row is a fresh one
            healthy.restore(torch.tensor([2]), physics.snapshot(torch.tensor([2])))
    (dump,) = physics.drain_unstable()
    assert physics.drain_unstable() == []
    assert dump["row"] == 2 and dump["error"] == ""
    assert dump["states"].shape == (4, last_good.shape[1]) and dump["ctrl"].shape == (4, DECIMATION, scene.model.nu)
    data = _replay(scene.model, dump)
    assert not np.all(np.abs(data.qvel) < 1e10)
    # the states before it lead to one another
    for step in range(2):
        mujoco.mj_setState(scene.model, data, dump["states"][step], STATE)
        for row in dump["ctrl"][step]:
            data.ctrl[:] = row
            mujoco.mj_step(scene.model, data)
        reached = np.zeros(last_good.shape[1])
        mujoco.mj_getState(scene.model, data, reached, STATE)
        np.testing.assert_array_equal(reached[1 : 1 + scene.model.nq], dump["states"][step + 1][1 : 1 + scene.model.nq])


def test_a_dump_holds_the_rows_own_model(scene):
    physics, ctrl, fields = _diverse(scene, 3)
    blown = physics.qvel.clone()
    blown[1] = 1e12
    physics.write(torch.tensor([0, 1, 0]).bool(), qvel=blown)
    physics.step(ctrl)
    (dump,) = physics.drain_unstable()
    for name, values in fields.items():
        np.testing.assert_array_equal(dump[f"model.{name}"], values[1].double().numpy())


def test_many_blow_ups_are_all_flagged_and_a_few_recorded(scene):
    physics, ctrl = _start(scene, 30)
    physics.write(_everyone(physics), qvel=torch.full((30, scene.model.nv), 1e12))
    physics.step(ctrl)
    assert physics.unstable.all()
    assert 1 <= len(physics.drain_unstable()) <= 8
    physics.step(ctrl)
    assert not physics.unstable.any()


def _raising_scene() -> SimpleNamespace:
    """Spheres whose contacts need more memory than the model has; high above the ground there are none."""
    spheres = "".join(f'<geom type="sphere" size="0.05" pos="{0.1 * (i // 5)} {0.1 * (i % 5)} 0"/>' for i in range(25))
    for kilobytes in range(32, 128, 4):
        model = mujoco.MjModel.from_xml_string(f"""
            <mujoco> <size memory="{kilobytes}K"/> <option timestep="0.005"><flag autoreset="disable"/></option>
              <worldbody> <geom type="plane" size="0 0 1"/>
                <body pos="0 0 2"><freejoint/> {spheres} </body>
              </worldbody>
            </mujoco>""")
        scene = SimpleNamespace(
            model=model, frames=(), frame_orientation=False, sensors={}, joint_torque=False, foot_touchdown=False
        )
        physics = NativePhysics(scene, 1, DECIMATION, 1)  # pyright: ignore[reportArgumentType]
        physics.write(_everyone(physics), qpos=torch.tensor([[0.0, 0, 0.04, 1, 0, 0, 0]]))
        physics.step(torch.zeros(1, 0))
        if physics.drain_unstable():
            return scene
    raise AssertionError("no memory size makes MuJoCo raise")


@pytest.mark.parametrize("substeps", [False, True])
def test_a_row_that_raises_is_quarantined_alone(substeps):
    scene = _raising_scene()
    physics, healthy = (NativePhysics(scene, 3, DECIMATION, 2) for _ in range(2))  # pyright: ignore
    qpos = physics.qpos.clone()
    qpos[1, 2] = 0.04
    physics.write(torch.tensor([0, 1, 0]).bool(), qpos=qpos)
    ctrl = torch.zeros(3, DECIMATION, 0) if substeps else torch.zeros(3, 0)
    physics.step(ctrl)
    healthy.step(ctrl)
    assert physics.unstable.tolist() == [False, True, False]
    _assert_identical(_outputs(physics), _outputs(healthy), torch.tensor([0, 2]))
    np.testing.assert_array_equal(physics.qpos[1].numpy(), scene.model.qpos0.astype(np.float32))
    (dump,) = physics.drain_unstable()
    assert dump["row"] == 1 and "mj_stackAlloc" in dump["error"]
    with pytest.raises(mujoco.FatalError, match="mj_stackAlloc"):
        _replay(scene.model, dump)
    physics.step(ctrl)
    assert not physics.unstable.any()
