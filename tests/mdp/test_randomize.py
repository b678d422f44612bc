"""The table of what robots may differ in: its numbers, their columns, and that rows behave as models of their own do."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import mujoco
import numpy as np
import pytest
import torch

import embodied_rl
from embodied_rl.env import Env
from embodied_rl.errors import UserError
from embodied_rl.mdp.randomize import QUANTITIES

#: A row of each quantity: what is drawn, and the fields of the model that follow.
ROWS = {
    "friction": ("of: feet, operation: set, range: [0.3, 1.5]", {"geom_friction"}),
    "mass": ("of: base, operation: add, range: [-2.0, 3.0]", {"body_mass", "body_inertia"}),
    "com": ("of: thighs, per: element, operation: add, range: [-0.03, 0.03]", {"body_ipos"}),
    "armature": ("of: hips, per: element, operation: set, range: [0.005, 0.02]", {"dof_armature"}),
    "stiffness": ("operation: scale, per: element, range: [0.8, 1.2]", {"actuator_gainprm", "actuator_biasprm"}),
    "damping": ("operation: scale, range: [0.5, 2.0], distribution: log_uniform", {"actuator_biasprm"}),
    "friction_loss": ("of: calves, operation: set, range: [0.1, 0.5], distribution: normal", {"dof_frictionloss"}),
    "gravity": ("operation: scale, range: [0.8, 1.2]", {"opt.gravity"}),
}
WHEN = {"friction": "reset", "friction_loss": "reset", "stiffness": "interval, interval_s: 0.02", "gravity": "iteration"}


def make(*rows: str, num_envs: int = 2, engine: str = "native", **overrides: object) -> Env:
    """go2_flat with these rows and no other events; eager, all feet on one thread."""
    events = [f"events.{name}=null" for name in ("foot_friction", "push", "reset_base", "reset_joints")]
    drawn = [f"events.row_{number}={{term: randomize, {row}}}" for number, row in enumerate(rows)]
    numbers = [f"{path}={value}" for path, value in overrides.items()]
    with torch.no_grad():
        return embodied_rl.make(
            "go2_flat", ["env.compile=false", *events, *drawn, *numbers], num_envs=num_envs, engine=engine, device="cpu"
        )


def numbers(env: Env, field: str) -> np.ndarray:
    return env.fields.values[field].flatten(1).numpy()


def own(env: Env, field: str) -> np.ndarray:
    owner, _, option = field.rpartition(".")
    return np.array(getattr(env.scene.model.opt if owner else env.scene.model, option)).reshape(-1)


@pytest.fixture
def row(request: pytest.FixtureRequest) -> tuple[str, str, set[str]]:
    quantity = request.param
    text, fields = ROWS[quantity]
    return quantity, f"quantity: {quantity}, {text}, when: {WHEN.get(quantity, 'startup')}", fields


@pytest.mark.parametrize(
    ("row", "engine", "tolerance"),
    [
        *((quantity, "native", 1e-9) for quantity in QUANTITIES),
        # of the others, tests/physics/test_columns.py compares what warp makes with models that are compiled so
        *(
            pytest.param(quantity, "warp", 1e-4, marks=[] if quantity in ("mass", "friction_loss") else pytest.mark.slow)
            for quantity in QUANTITIES
        ),
    ],
    indirect=["row"],
)
def test_two_rows_behave_as_two_models_do(row: tuple[str, str, set[str]], engine: str, tolerance: float) -> None:
    """One control step of each robot against plain MuJoCo with a model of that robot's rounded numbers."""
    if engine == "warp":
        pytest.importorskip("mujoco_warp")
    _, text, fields = row
    env = make(text, engine=engine)
    with torch.no_grad():
        env.step(torch.zeros(2, 12))  # an interval's row draws here
    assert set(env.fields.values) - {"geom_friction"} == fields - {"geom_friction"}
    drawn = {field: columns.numpy() for mode in env.terms.drawn.values() for field, (columns, _) in mode.items()}
    assert set(drawn) == fields
    moved = [np.abs(numbers(env, field)[:, drawn[field]] - own(env, field)[drawn[field]]).max(1) for field in fields]
    assert all((one > 1e-4).all() for one in moved) and all(one[0] != one[1] for one in moved)
    expected = []
    actions = torch.linspace(-0.5, 0.5, 24).view(2, 12)
    for index in range(2):
        model = copy.deepcopy(env.scene.model)
        for field, columns in drawn.items():
            owner, _, option = field.rpartition(".")
            target = getattr(model.opt if owner else model, option)
            flat = np.array(target).reshape(-1)
            flat[columns] = numbers(env, field)[index, columns]
            target[:] = flat.reshape(target.shape)
        data = mujoco.MjData(model)
        mujoco.mj_setConst(model, data)
        data.qpos[:], data.qvel[:] = env.physics.qpos[index].double().numpy(), env.physics.qvel[index].double().numpy()
        expected.append((model, data))
    with torch.no_grad():
        env.physics.reset(torch.ones(2, dtype=torch.bool))  # no warm start on either side
        env.physics.write(torch.ones(2, dtype=torch.bool), qpos=env.physics.qpos.clone(), qvel=env.physics.qvel.clone())
        for index, (_, data) in enumerate(expected):
            data.qpos[:], data.qvel[:] = env.physics.qpos[index].double().numpy(), env.physics.qvel[index].double().numpy()
        controls = env.robot.default_joint_pos + 0.5 * actions
        env.physics.step(controls)
    for index, (model, data) in enumerate(expected):
        data.ctrl[:] = controls[index].double().numpy()
        for _ in range(env.page.physics.decimation):
            mujoco.mj_step(model, data)
    found = state(env)
    for index, (_, data) in enumerate(expected):
        np.testing.assert_allclose(found[index], np.concatenate((data.qpos, data.qvel)), rtol=0, atol=tolerance)
    env.close()


def state(env: Env) -> np.ndarray:
    """qpos and qvel, in double precision where the engine has it."""
    batch = getattr(env.physics, "_state", None)
    if env.page.physics.engine == "native":
        assert batch is not None
        return np.concatenate((batch["qpos"], batch["qvel"]), axis=1)
    return torch.cat((env.physics.qpos, env.physics.qvel), dim=1).double().numpy()


@pytest.fixture(scope="module")
def many() -> Iterator[Env]:
    """A thousand robots that differ in everything at startup."""
    env = make(
        "quantity: mass, of: base, operation: add, range: [-1.0, 2.0]",
        "quantity: com, of: base, operation: add, range: [-0.03, 0.01]",
        "quantity: armature, of: hips, per: element, operation: set, range: [0.001, 0.1], distribution: log_uniform",
        "quantity: stiffness, operation: scale, range: [0.8, 1.2], distribution: normal",
        "quantity: friction, of: feet, per: element, operation: scale, range: [0.5, 1.5]",
        num_envs=1000,
    )
    yield env
    env.close()


def test_a_uniform_range_is_filled_and_inertia_follows_the_mass(many: Env) -> None:
    base = many.scene.base_body
    added = numbers(many, "body_mass")[:, base] - own(many, "body_mass")[base]
    assert -1.0 <= added.min() < -0.97 and 1.97 < added.max() <= 2.0 and abs(added.mean() - 0.5) < 0.1
    factor = numbers(many, "body_mass")[:, base] / own(many, "body_mass")[base]
    inertia = many.fields.values["body_inertia"][:, base].numpy() / own(many, "body_inertia").reshape(-1, 3)[base]
    np.testing.assert_allclose(inertia, np.repeat(factor[:, None], 3, 1), rtol=1e-5)


def test_each_axis_of_a_centre_of_mass_is_drawn_apart(many: Env) -> None:
    base = many.scene.base_body
    moved = many.fields.values["body_ipos"][:, base].numpy() - own(many, "body_ipos").reshape(-1, 3)[base]
    assert (moved.min(0) < -0.0295).all() and (moved.max(0) > 0.0095).all() and moved.max() <= 0.01 + 1e-7
    assert np.abs(np.corrcoef(moved.T) - np.eye(3)).max() < 0.12


def test_a_log_uniform_range_has_its_median_at_the_geometric_mean(many: Env) -> None:
    hips = many.robot.qvel_index[list(many.robot.joint_indices("hips"))].numpy()
    armature = numbers(many, "dof_armature")[:, hips]
    assert 0.001 <= armature.min() < 0.0011 and 0.09 < armature.max() <= 0.1 + 1e-6
    np.testing.assert_allclose(np.median(armature, axis=0), 0.01, rtol=0.25)
    assert len(np.unique(armature[0])) == 4  # one for each element


def test_a_normal_range_holds_two_deviations_either_way(many: Env) -> None:
    stiffness = many.fields.values["actuator_gainprm"][:, :, 0].numpy()
    factor = stiffness / own(many, "actuator_gainprm").reshape(12, -1)[:, 0]
    assert np.allclose(factor, factor[:, :1])  # one number for the robot
    assert factor.min() >= 0.8 - 1e-6 and factor.max() <= 1.2 + 1e-6
    assert abs(factor[:, 0].mean() - 1.0) < 0.01 and 0.08 < factor[:, 0].std() < 0.1
    # torque = kp (target - q) - kd qd keeps its form
    np.testing.assert_array_equal(many.fields.values["actuator_biasprm"][:, :, 1].numpy(), -stiffness)


def test_only_the_columns_that_are_drawn_are_written(many: Env) -> None:
    rows = many.physics._model_fields["geom_friction"].reshape(1000, -1)  # pyright: ignore[reportAttributeAccessIssue]
    drawn = [3 * geom for geom in many.scene.foot_geoms]
    others = np.setdiff1d(np.arange(rows.shape[1]), drawn)
    assert (rows[:, others] == own(many, "geom_friction")[others]).all()  # in double precision, to the last bit
    assert (rows[:, drawn].std(0) > 0.1).all()


def test_what_a_reset_draws_is_kept_for_the_episode_and_begins_from_the_models_own() -> None:
    env = make("quantity: friction, of: feet, operation: scale, range: [0.5, 0.6], when: reset", num_envs=64)
    foot = 3 * env.scene.foot_geoms[0]
    seen = [numbers(env, "geom_friction")[:, foot].copy()]
    for _ in range(3):
        env.episode.episode_length.fill_(env.max_episode_length - 1)
        with torch.no_grad():
            env.step(torch.zeros(64, 12))
        seen.append(numbers(env, "geom_friction")[:, foot].copy())
        with torch.no_grad():
            env.step(torch.zeros(64, 12))
        assert (numbers(env, "geom_friction")[:, foot] == seen[-1]).all()
    ratios = np.stack(seen) / own(env, "geom_friction")[foot]
    assert (ratios >= 0.5 - 1e-6).all() and (ratios <= 0.6 + 1e-6).all()  # not 0.6^4
    assert (np.diff(ratios, axis=0) != 0).all()
    env.close()


def test_an_interval_redraws_some_rows_now_and_then() -> None:
    env = make("quantity: damping, operation: scale, range: [0.5, 2.0], when: interval, interval_s: 0.2", num_envs=400)
    before = numbers(env, "actuator_biasprm").copy()
    changed = []
    with torch.no_grad():
        for _ in range(20):
            env.step(torch.zeros(400, 12))
            now = numbers(env, "actuator_biasprm").copy()
            changed.append((now != before).any(1).mean())
            before = now
    assert 0.07 < np.mean(changed) < 0.13  # 0.02 s / 0.2 s
    factor = before.reshape(400, 12, -1)[:, 0, 2] / own(env, "actuator_biasprm").reshape(12, -1)[0, 2]
    assert factor.min() >= 0.5 - 1e-6 and factor.max() <= 2.0 + 1e-6
    env.close()


def test_an_iteration_draws_the_same_whenever_it_comes() -> None:
    env = make("quantity: mass, of: base, operation: scale, range: [0.8, 1.2], when: iteration", num_envs=8)
    seen = []
    for iteration in (0, 1, 2, 1):
        env.begin_iteration(iteration, {})
        seen.append(numbers(env, "body_mass").copy())
    assert (seen[1] == seen[3]).all() and (seen[0] != seen[1]).any() and (seen[1] != seen[2]).any()
    batch = env.physics._batch  # pyright: ignore[reportAttributeAccessIssue]
    whole = batch.get_model(3).body_subtreemass[env.scene.base_body]  # what MuJoCo derives has followed
    np.testing.assert_allclose(whole, numbers(env, "body_mass")[3].sum(), rtol=1e-6)
    env.close()


def test_rows_of_one_moment_work_one_upon_the_other() -> None:
    env = make(
        "quantity: mass, of: all, operation: scale, range: [2.0, 2.0]",
        "quantity: mass, of: base, operation: add, range: [1.0, 1.0]",
    )
    expected = 2.0 * own(env, "body_mass")
    expected[env.scene.base_body] += 1.0
    np.testing.assert_allclose(numbers(env, "body_mass")[0], expected, rtol=1e-6)
    env.close()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["quantity: mass, operation: scale, range: [0.9, 1.1], when: reset"],
            "events.row_0.when: reset: MuJoCo derives other numbers from mass, too slow for a step; write `when: iteration`",
        ),
        (["quantity: friction, of: paws, operation: set, range: [1, 1]"], "events.row_0.of: 'paws' is no group of bodies in"),
        (["quantity: stiffness, of: paws, operation: set, range: [1, 1]"], "no joint or group 'paws'"),
        (["quantity: com, operation: scale, range: [1, 1]"], "events.row_0.operation: scale: of com only add"),
        (["quantity: gravity, of: base, operation: add, range: [0, 1]"], "gravity is the world's; leave `of` out"),
        (
            ["quantity: mass, of: base, operation: add, range: [-9.0, 1.0]"],
            "range: [-9, 1]: mass of 'base' is 6.921, and would become -2.079; more than 0",
        ),
        (
            ["quantity: armature, operation: set, range: [0.0, 1.0], distribution: log_uniform"],
            "a log_uniform distribution is of numbers above 0",
        ),
        (
            [
                "quantity: friction, of: feet, operation: set, range: [1, 1], when: reset",
                "quantity: friction, operation: set, range: [1, 1]",
            ],
            "both draw numbers of geom_friction; give both the same `when`",
        ),
    ],
)
def test_a_row_that_cannot_be_is_one_line(rows: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make(*rows)
    assert message in str(caught.value) and "\n" not in str(caught.value)
