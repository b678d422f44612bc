"""Numbers of a model that are written row by row act as in models that are compiled with them: what randomization stands on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from torch import Tensor

from embodied_rl.config.page import PhysicsSettings
from embodied_rl.errors import UserError
from embodied_rl.make_env import _copied, identity
from embodied_rl.physics import capacity
from embodied_rl.physics.native import NativePhysics

DECIMATION = 4
#: A leg that slides over the ground; every body is explicit, and the base's centre of mass is its origin, which MuJoCo knows of.
LEG = """
<mujoco>
  <option timestep="0.005" integrator="implicitfast" iterations="50" ls_iterations="50"><flag autoreset="disable"/></option>
  <worldbody>
    <geom name="ground" type="plane" size="0 0 1"/>
    <body name="base" pos="0 0 0.42">
      <freejoint/> <inertial pos="0 0 0" mass="2" diaginertia="0.02 0.02 0.02"/>
      <body name="thigh" pos="0.1 0 0">
        <joint name="hip" axis="0 1 0" range="-1 1" armature="0.01" {loss}/>
        <inertial pos="0 0 -0.1" mass="0.5" diaginertia="0.003 0.003 0.0005"/>
        <body name="calf" pos="0 0 -0.2">
          <joint name="knee" axis="0 1 0" range="-2 1" armature="0.01" {loss}/>
          <inertial pos="0 0 -0.1" mass="0.3" diaginertia="0.001 0.001 0.0002"/>
          <geom name="paw" type="sphere" size="0.03" pos="0 0 -0.2" priority="1"/>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position name="hip" joint="hip" kp="20" kv="0.5" forcerange="-5 5"/>
    <position name="knee" joint="knee" kp="20" kv="0.5" forcerange="-5 5"/>
  </actuator>
</mujoco>
"""
LOSSY = LEG.replace("{loss}", 'frictionloss="0.3"')
LEG = LEG.replace("{loss}", "")


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A number that randomization moves: where it stands in the model, and how a model is compiled with it."""

    columns: dict[str, list[tuple[tuple[str, str] | None, tuple[int, ...], float]]]
    """By field: (kind and name of an element, place in its row of the field, value)."""
    compiled: Callable[[mujoco.MjSpec], None]
    set_const: bool = False


def _mass(spec: mujoco.MjSpec) -> None:
    body = spec.body("base")
    body.mass, body.inertia = 3.0, np.array([0.03, 0.04, 0.05], np.float32)


def _com(spec: mujoco.MjSpec) -> None:
    spec.body("base").ipos, spec.body("calf").ipos = (
        np.array([0.03, -0.02, 0.01], np.float32),
        np.array([0.01, 0.02, -0.1], np.float32),
    )


def _armature(spec: mujoco.MjSpec) -> None:
    spec.joint("knee").armature = np.float32(0.05)


def _stiffness(spec: mujoco.MjSpec) -> None:
    spec.actuator("knee").gainprm[0], spec.actuator("knee").biasprm[1] = 9.0, -9.0


def _losses(hip: float, knee: float) -> Callable[[mujoco.MjSpec], None]:
    def edit(spec: mujoco.MjSpec) -> None:
        spec.joint("hip").frictionloss, spec.joint("knee").frictionloss = np.float32(hip), np.float32(knee)

    return edit


BASE, CALF, HIP, KNEE = ("body", "base"), ("body", "calf"), ("dof", "hip"), ("dof", "knee")
MOTOR = ("actuator", "knee")
QUANTITIES = {
    "friction": Quantity(
        {"geom_friction": [(("geom", "paw"), (0,), 0.2)]}, lambda spec: spec.geom("paw").friction.__setitem__(0, np.float32(0.2))
    ),
    "mass": Quantity(
        {"body_mass": [(BASE, (), 3.0)], "body_inertia": [(BASE, (i,), v) for i, v in enumerate((0.03, 0.04, 0.05))]},
        _mass,
        set_const=True,
    ),
    "com": Quantity(
        {
            "body_ipos": [
                *((BASE, (i,), v) for i, v in enumerate((0.03, -0.02, 0.01))),
                *((CALF, (i,), v) for i, v in enumerate((0.01, 0.02, -0.1))),
            ]
        },
        _com,
        set_const=True,
    ),
    "armature": Quantity({"dof_armature": [(KNEE, (), 0.05)]}, _armature, set_const=True),
    "stiffness": Quantity({"actuator_gainprm": [(MOTOR, (0,), 9.0)], "actuator_biasprm": [(MOTOR, (1,), -9.0)]}, _stiffness),
    "damping": Quantity(
        {"actuator_biasprm": [(MOTOR, (2,), -1.5)]}, lambda spec: spec.actuator("knee").biasprm.__setitem__(2, -1.5)
    ),
    "friction_loss": Quantity({"dof_frictionloss": [(HIP, (), 0.8), (KNEE, (), 0.4)]}, _losses(0.8, 0.4)),
    "no_friction_loss": Quantity({"dof_frictionloss": [(HIP, (), 0.0), (KNEE, (), 0.0)]}, _losses(0.0, 0.0)),
    "gravity": Quantity(
        {"opt.gravity": [(None, (i,), v) for i, v in enumerate((0.5, -1.0, -8.0))]},
        lambda spec: setattr(spec.option, "gravity", [0.5, -1.0, -8.0]),
    ),
}
#: Row 0 keeps the model's numbers; every other one has its own quantity.
ROWS = len(QUANTITIES) + 1
FIELDS = sorted({field for quantity in QUANTITIES.values() for field in quantity.columns})


def _engine(name: str, model: mujoco.MjModel, rows: int = ROWS, compiler: Callable = identity, **settings: Any) -> Any:
    pytest.importorskip({"native": "mujoco", "warp": "mujoco_warp", "mjx": "mujoco.mjx"}[name])
    scene: Any = SimpleNamespace(
        model=model, frames=(), frame_orientation=False, sensors={}, joint_torque=True, foot_touchdown=False
    )
    if name == "native":
        return NativePhysics(scene, rows, DECIMATION, 1)
    if name == "warp":
        from embodied_rl.physics.warp import WarpPhysics

        given = PhysicsSettings(engine="warp", decimation=DECIMATION, **settings)
        return WarpPhysics(scene, rows, given, torch.device("cpu"), compiler)
    from embodied_rl.physics.mjx import MjxPhysics

    return MjxPhysics(scene, rows, DECIMATION, torch.device("cpu"))


def _states(model: mujoco.MjModel) -> tuple[Tensor, Tensor, Tensor]:
    """All rows alike: the paw on the ground, moving; float32."""
    qpos, qvel, ctrl = model.qpos0.copy(), np.zeros(model.nv), np.array([0.2, -0.35])
    qpos[7:], qvel[:3], qvel[6:] = (0.1, -0.2), (0.5, 0.2, 0.0), (1.0, -2.0)
    qpos[2] += 0.002
    return tuple(torch.tensor(np.tile(value, (ROWS, 1)), dtype=torch.float32) for value in (qpos, qvel, ctrl))  # pyright: ignore


def _columns(model: mujoco.MjModel, shape: torch.Size, places: list) -> tuple[Tensor, Tensor]:
    """Columns of the flattened field, and their values for all rows."""
    columns = []
    for element, place, _ in places:
        index = ()
        if element:
            kind, name = element
            index = (int(model.joint(name).dofadr[0]) if kind == "dof" else getattr(model, kind)(name).id,)
        columns.append(int(np.ravel_multi_index((*index, *place), tuple(shape[1:]))))
    values = torch.tensor([[value for *_, value in places]], dtype=torch.float32)
    return torch.tensor(columns), values.expand(shape[0], -1)


def _row(index: int) -> Tensor:
    return torch.arange(ROWS) == index


def _state(physics: Any, name: str) -> np.ndarray:
    """The state as precise as the engine has it."""
    state = physics._state[name]
    return state.copy() if isinstance(state, np.ndarray) else state.numpy().copy()


@dataclasses.dataclass
class Played:
    """One control step of an engine whose rows have numbers of their own."""

    engine: str
    xml: str
    physics: Any
    before: dict[str, np.ndarray]
    """The expanded fields before anything was written, (N, ...), as precise as the engine has them."""
    after: dict[str, np.ndarray]
    plain: tuple[np.ndarray, np.ndarray]
    """Qpos and qvel of an engine that nothing was asked of; for mjx they are C's."""


#: MJX takes a minute to compile its step.
PLAYED = [("native", LEG), ("native", LOSSY), ("warp", LEG), ("warp", LOSSY), pytest.param(("mjx", LEG), marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=PLAYED)
def played(request: pytest.FixtureRequest) -> Iterator[Played]:
    engine, xml = request.param
    model = mujoco.MjModel.from_xml_string(xml)
    qpos, qvel, ctrl = _states(model)
    everyone = torch.ones(ROWS, dtype=torch.bool)
    # mjx compiles another step for a model that nothing is asked of: C has to stand for it
    plain, physics = _engine("native" if engine == "mjx" else engine, model), _engine(engine, model)
    shapes = {field: physics.expand(field).shape for field in FIELDS}
    held = lambda: {name: (v if isinstance(v, np.ndarray) else v.numpy()).copy() for name, v in physics._model_fields.items()}  # noqa: E731
    before = held()
    for index, quantity in enumerate(QUANTITIES.values(), start=1):
        for field, places in quantity.columns.items():
            physics.write_model(_row(index), field, *_columns(model, shapes[field], places))
        if quantity.set_const:
            physics.set_const(_row(index))
    after = held()
    for one in (plain, physics):
        one.write(everyone, qpos=qpos, qvel=qvel)
        one.step(ctrl)
    assert physics.drain_overflow() in ({}, {"physics.nconmax": 0, "physics.njmax": 0})
    yield Played(engine, xml, physics, before, after, (_state(plain, "qpos"), _state(plain, "qvel")))
    plain.close()
    physics.close()


@pytest.mark.parametrize("name", QUANTITIES)
def test_a_rows_own_numbers_act_as_in_a_model_compiled_with_them(played: Played, name: str) -> None:
    spec = mujoco.MjSpec.from_string(played.xml)
    QUANTITIES[name].compiled(spec)
    model = spec.compile()
    qpos, qvel, ctrl = _states(model)
    expected = []
    for one in (model, mujoco.MjModel.from_xml_string(played.xml)):
        data = mujoco.MjData(one)
        data.qpos[:], data.qvel[:], data.ctrl[:] = qpos[0], qvel[0], ctrl[0]
        mujoco.mj_step(one, data, nstep=DECIMATION)
        assert data.ncon == 1
        expected.append((data.qpos.copy(), data.qvel.copy()))
    row = list(QUANTITIES).index(name) + 1
    tolerance = 1e-9 if played.engine == "native" else 1e-4
    found = _state(played.physics, "qpos")[row], _state(played.physics, "qvel")[row]
    for one, other in zip(found, expected[0], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)
    if not (name == "no_friction_loss" and played.xml == LEG):
        assert np.abs(expected[0][1] - expected[1][1]).max() > 5e-3, "the quantity changes nothing here"


def test_a_row_that_is_not_written_is_that_of_an_engine_that_nothing_was_asked_of(played: Played) -> None:
    found = _state(played.physics, "qpos"), _state(played.physics, "qvel")
    for one, other in zip(found, played.plain, strict=True):
        if played.engine == "mjx":
            np.testing.assert_allclose(one[0], other[0], rtol=0, atol=1e-4)
        else:
            np.testing.assert_array_equal(one[0], other[0])


def test_what_is_not_written_keeps_its_bits(played: Played) -> None:
    model = played.physics.model
    for field in FIELDS:
        expected = played.before[field].copy()
        for index, quantity in enumerate(QUANTITIES.values(), start=1):
            if field in quantity.columns:
                columns, values = _columns(model, torch.Size(expected.shape), quantity.columns[field])
                expected.reshape(ROWS, -1)[index, columns.numpy()] = values[0].numpy()
        np.testing.assert_array_equal(played.after[field], expected, err_msg=field)
        if played.engine == "native":  # the model's own, in double precision
            own = model.opt.gravity if field == "opt.gravity" else getattr(model, field)
            np.testing.assert_array_equal(played.after[field][0], own)
    assert np.float64(np.float32(0.02)) != 0.02  # such numbers are among them


def test_snapshots_and_dumps_carry_gravity(played: Played) -> None:
    if played.xml == LOSSY:
        pytest.skip("as without")
    row = list(QUANTITIES).index("gravity") + 1
    physics, own = played.physics, np.array([0.5, -1.0, -8.0], np.float32)
    state = physics.snapshot(torch.arange(ROWS))
    np.testing.assert_array_equal(state["model.opt.gravity"][row].numpy(), own)
    fresh = _engine(played.engine, physics.model)
    fresh.restore(torch.arange(ROWS), state)
    np.testing.assert_array_equal(fresh.expand("opt.gravity")[row].numpy(), own)
    _, _, ctrl = _states(physics.model)
    for one in (physics, fresh):
        one.restore(torch.arange(ROWS), state)
        one.step(ctrl)
    assert torch.equal(physics.qvel, fresh.qvel)
    physics.restore(torch.arange(ROWS), state)
    physics.write(_row(row), qvel=torch.full_like(physics.qvel, torch.nan))
    physics.step(ctrl)
    (dump,) = physics.drain_unstable()
    np.testing.assert_array_equal(dump["model.opt.gravity"], own)
    physics.restore(torch.arange(ROWS), state)


CHAIN = """
<mujoco>
  <option timestep="0.005" iterations="50"><flag autoreset="disable"/></option>
  <worldbody>{links}</worldbody>
  <actuator><motor joint="j0"/></actuator>
</mujoco>
"""


@pytest.mark.parametrize("given", [None, 16])
def test_warp_makes_room_for_friction_losses_that_the_model_has_none_of(given: int | None) -> None:
    links, count = "", 12
    for index in reversed(range(count)):
        geom = '<geom size="0.05" mass="0.2" pos="0.1 0 0" contype="0" conaffinity="0"/>'
        links = f'<body pos="0.1 0 0"><joint name="j{index}" axis="0 1 0" armature="0.01"/>{geom}{links}</body>'
    model = mujoco.MjModel.from_xml_string(CHAIN.format(links=links))
    nconmax, njmax = 8, capacity.measure(model, np.zeros((0, 2), int))[1]
    assert njmax < count  # no limit, no contact
    physics = _engine("warp", model, 2, njmax=given, nconmax=nconmax)
    loss = torch.linspace(0.02, 0.2, count).expand(2, -1)
    physics.expand("dof_frictionloss")
    physics.write_model(torch.tensor([False, True]), "dof_frictionloss", torch.arange(count), loss)
    qvel = torch.linspace(-2.0, 2.0, count).expand(2, -1)
    physics.write(torch.ones(2, dtype=torch.bool), qvel=qvel)
    physics.step(torch.zeros(2, 1))
    assert physics.capacity["physics.njmax"] == (given or njmax + count)
    assert not any(physics.drain_overflow().values())
    for row, losses in enumerate((np.zeros(count), loss[1].double().numpy())):
        model.dof_frictionloss[:] = losses
        data = mujoco.MjData(model)
        data.qvel[:] = qvel[row]
        mujoco.mj_step(model, data, nstep=DECIMATION)
        np.testing.assert_allclose(physics.qvel[row].numpy(), data.qvel, atol=1e-4)


@pytest.mark.parametrize("name", ["warp", "mjx"])
def test_an_option_that_is_one_for_all_simulations_is_named(name: str) -> None:
    physics = _engine(name, mujoco.MjModel.from_xml_string(LEG))
    with pytest.raises(UserError, match=f"physics.engine: {name} has no values of opt.timestep per simulation"):
        physics.expand("opt.timestep")


def test_any_number_of_fields_is_written_by_compiled_functions() -> None:
    """torch gives up a function of which it has compiled eight variants, and each field can want two."""
    compiler = lambda function: torch.compile(_copied(function), fullgraph=True, dynamic=False, backend="eager")  # noqa: E731
    model = mujoco.MjModel.from_xml_string(LEG.format(loss=""))
    physics = _engine("warp", model, rows=2, compiler=compiler)
    everyone = torch.ones(2, dtype=torch.bool)
    for field in FIELDS:
        whole = physics.expand(field).view(2, -1)
        numbers = torch.arange(float(whole.shape[1]))
        for values in (numbers.expand(2, -1), numbers.repeat(2, 1)):  # one row's for all, and each row's own
            physics.write_model(everyone, field, torch.arange(whole.shape[1]), values)
        assert torch.equal(physics.expand(field).view(2, -1), numbers.expand(2, -1)), field
