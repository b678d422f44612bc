"""A URDF written of a model is the model's robot: stock MuJoCo, which reads URDFs by itself, is the oracle."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import mujoco
import numpy as np
import pytest

from embodied_rl.config import load
from embodied_rl.errors import UserError
from embodied_rl.make_env import make_scene
from embodied_rl.physics.urdf_writer import Linkage

ROBOT = """
<mujoco>
  <worldbody>
    <geom name="ground" type="plane" size="0 0 1"/>
    <body name="base" pos="0 0 0.4"><freejoint/> <geom name="box" type="box" size="0.2 0.1 0.05" mass="3"/>
      <body name="thigh" pos="0.1 0.05 0" euler="20 30 40">
        <joint name="hip" axis="0 0.6 0.8" pos="0.01 0.02 0.03" range="-60 50" armature="0.01"/>
        <geom name="tube" type="capsule" fromto="0 0 0 0 0 -0.2" size="0.02" mass="0.5"/>
        <body name="shin" pos="0 0.01 -0.2" euler="0 0 90">
          <geom name="can" type="cylinder" size="0.02 0.1" mass="0.2"/>
          <geom name="paw" type="sphere" size="0.03" pos="0 0 -0.1" mass="0.1"/>
          <body name="toe" pos="0 0 -0.15"><joint name="reach" type="slide" axis="0 0 1" range="0 0.1"/>
            <geom name="tip" type="sphere" size="0.01" mass="0.05"/></body>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator><position joint="hip" kp="20" forcerange="-7 5"/></actuator>
</mujoco>
"""


def read(path: Path, *, free: bool = True) -> mujoco.MjModel:
    """The file as MuJoCo has it, its first link free to move, links behind fixed joints fused with what they are fixed to."""
    spec = mujoco.MjSpec.from_file(str(path))
    spec.compiler.fusestatic = False  # it would fuse the base with the world
    if free:
        spec.worldbody.first_body().add_freejoint()
    return spec.compile()


def mass_matrix(model: mujoco.MjModel, qpos: np.ndarray, *, armature: bool = False) -> tuple[np.ndarray, mujoco.MjData]:
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    full = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, data, full)
    return full - (0.0 if armature else 1.0) * np.diag(model.dof_armature), data


def same_robot(model: mujoco.MjModel, path: Path) -> None:
    """Joints by name, their axes, limits and efforts, and the mass matrix at a few poses, to 1e-6."""
    found, rng = read(path), np.random.default_rng(0)
    joints = [model.joint(number).name for number in range(1, model.njnt)]
    assert [found.joint(number).name for number in range(1, found.njnt)] == joints
    for field in ("jnt_axis", "jnt_limited", "jnt_range"):
        np.testing.assert_allclose(getattr(found, field)[1:], getattr(model, field)[1:], atol=1e-6, err_msg=field)
    for row in range(3):
        qpos = np.array(model.qpos0)
        qpos[7:] += rng.uniform(-0.5, 0.5, model.nq - 7) * (row > 0)
        qpos[3:7] = rng.normal(size=4) if row else (1, 0, 0, 0)
        qpos[3:7] /= np.linalg.norm(qpos[3:7])
        (theirs, there), (ours, here) = mass_matrix(found, qpos), mass_matrix(model, qpos)
        np.testing.assert_allclose(theirs, ours, atol=1e-6)
        for number in range(1, model.njnt):
            body, link = model.jnt_bodyid[number], found.jnt_bodyid[number]
            anchor = here.xpos[body] + here.xmat[body].reshape(3, 3) @ model.jnt_pos[number]
            np.testing.assert_allclose(there.xpos[link], anchor, atol=1e-6)
            np.testing.assert_allclose(there.xmat[link], here.xmat[body], atol=1e-6)
            np.testing.assert_allclose(there.xaxis[number], here.xaxis[number], atol=1e-6)


@pytest.mark.parametrize("page", ["go2_flat", "go1_flat", "a1_flat", "anymal_c_flat", "g1_flat", "go2_flat_full"])
def test_the_robots_are_what_their_models_are(page: str, tmp_path: Path) -> None:
    scene = make_scene(load(page))
    model, path = scene.model, tmp_path / "robot.urdf"
    linkage = Linkage(model, [{geom} for geom in scene.foot_geoms])
    linkage.write(path)
    same_robot(model, path)
    found = read(path)
    moving = [body for body in range(1, model.nbody) if model.body_weldid[body] == body]
    for body in moving:
        kilos = sum(model.body_mass[other] for other in range(1, model.nbody) if model.body_weldid[other] == body)
        theirs = found.body(model.body(body).name).id
        np.testing.assert_allclose(found.body_mass[found.body_weldid == theirs].sum(), kilos, atol=1e-6)
    full = [number for number in range(1, model.njnt) if model.jnt_limited[number]]
    np.testing.assert_allclose(
        found.jnt_actfrcrange[full, 1], [model.actuator_forcerange[number - 1, 1] for number in full], atol=1e-6
    )


def test_joints_whose_file_has_them_elsewhere_than_at_zero(tmp_path: Path) -> None:
    text = ROBOT.replace('range="-60 50"', 'range="-60 50" ref="30"').replace('range="0 0.1"', 'range="0 0.1" ref="0.04"')
    model, path = mujoco.MjModel.from_xml_string(text), tmp_path / "robot.urdf"
    assert model.qpos0[7] > 0.5 and model.qpos0[8] == 0.04
    Linkage(model, [{model.geom("paw").id}]).write(path)
    same_robot(model, path)


def test_a_slide_without_limits_says_so_in_numbers(tmp_path: Path) -> None:
    """A URDF's prismatic joint that says nothing of its limits has none to move in."""
    model, path = mujoco.MjModel.from_xml_string(ROBOT.replace(' range="0 0.1"', "")), tmp_path / "robot.urdf"
    Linkage(model).write(path)
    limits = [joint.find("limit") for joint in ElementTree.parse(path).findall("joint") if joint.get("type") == "prismatic"]
    assert [(one.get("lower"), one.get("upper")) for one in limits if one is not None] == [("-1000000.0", "1000000.0")]


@pytest.mark.parametrize("apart", [(), ("paw",), ("can", "paw")])
def test_anchors_fixed_bodies_and_turned_frames(apart: tuple[str, ...], tmp_path: Path) -> None:
    model, path = mujoco.MjModel.from_xml_string(ROBOT), tmp_path / "robot.urdf"
    linkage = Linkage(model, [{model.geom(name).id} for name in apart])
    shapes = linkage.write(path)
    same_robot(model, path)
    assert [link.name for link in linkage.links] == ["base", "thigh", "toe", *apart]
    rest = [name for name in ("tube", "can", "paw") if name not in apart]
    names = [[model.geom(geom).name for geom in row] for row in shapes]
    assert names == [
        ["box"],
        [name for name in rest for _ in range(3 if name == "tube" else 1)],
        ["tip"],
        *([one] for one in apart),
    ]
    # each shape is where its geom is: of a capsule, the middle one
    found = read(path)
    (_, there), (_, here) = mass_matrix(found, model.qpos0), mass_matrix(model, model.qpos0)
    flat = [geom for row in shapes for geom in row]
    assert found.ngeom == len(flat)
    for name in ("box", "can", "paw", "tip"):
        number = model.geom(name).id
        theirs = found.geom(name).id
        np.testing.assert_allclose(there.geom_xpos[theirs], here.geom_xpos[number], atol=1e-9)
        np.testing.assert_allclose(found.geom_size[theirs], model.geom_size[number], atol=1e-9)
        np.testing.assert_allclose(there.geom_xmat[theirs], here.geom_xmat[number], atol=1e-9)
    # a part that is measured weighs something, and leaves the rest possible
    masses, _, tensors = linkage.inertials(model.body_mass[None], model.body_ipos[None], model.body_inertia[None])
    assert (masses > 0).all() and (np.linalg.eigvalsh(tensors) > 0).all()


def test_sets_of_several_bodies_and_sets_that_share() -> None:
    model = mujoco.MjModel.from_xml_string(ROBOT)
    box, tube, can, paw = (model.geom(name).id for name in ("box", "tube", "can", "paw"))
    found = [(link.name, link.geoms) for link in Linkage(model, [{box, paw}, {tube, can}]).links]
    # of the thigh, both sets have a part, and the larger is the link's own; the box is all of the base
    assert found == [("base", (box,)), ("thigh", (tube, can)), ("toe", (model.geom("tip").id,)), ("paw", (paw,))]
    with pytest.raises(UserError, match="two sets of geoms that share some"):
        Linkage(model, [{tube, can}, {can, paw}])


def test_a_mesh_is_written_beside(tmp_path: Path) -> None:
    spec = mujoco.MjSpec.from_string(ROBOT)
    corners = np.array([[x, y, z] for x in (0, 0.1) for y in (0, 0.2) for z in (0, 0.3)])
    spec.add_mesh(name="block", uservert=corners.ravel())
    spec.body("toe").add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname="block", name="hull", mass=0.1)
    model, path = spec.compile(), tmp_path / "robot.urdf"
    Linkage(model).write(path)
    same_robot(model, path)
    found = read(path)
    number, theirs = model.geom("hull").id, found.geom("hull").id
    (_, there), (_, here) = mass_matrix(found, model.qpos0), mass_matrix(model, model.qpos0)
    reach = lambda one, data, geom: np.sort((one.mesh_vert @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]).ravel())  # noqa: E731
    np.testing.assert_allclose(reach(found, there, theirs), reach(model, here, number), atol=1e-6)


def test_masses_of_other_robots_are_those_of_models_compiled_with_them() -> None:
    model = mujoco.MjModel.from_xml_string(ROBOT)
    linkage = Linkage(model, [{model.geom("paw").id}])
    rng = np.random.default_rng(0)
    mass = model.body_mass * rng.uniform(0.8, 1.2, (4, model.nbody))
    ipos = model.body_ipos + rng.uniform(-0.01, 0.01, (4, model.nbody, 3))
    inertia = model.body_inertia * rng.uniform(1.0, 1.05, (4, model.nbody, 1))
    masses, centres, tensors = linkage.inertials(mass, ipos, inertia)
    np.testing.assert_allclose(masses.sum(1), mass[:, 1:].sum(1))
    for row in range(4):
        own = mujoco.MjModel.from_xml_string(ROBOT)
        own.body_mass[:], own.body_ipos[:], own.body_inertia[:] = mass[row], ipos[row], inertia[row]
        data = mujoco.MjData(own)
        mujoco.mj_setConst(own, data)  # a centre of mass that was the body's origin is so no more
        mujoco.mj_forward(own, data)
        middle, spin = np.zeros(3), np.zeros((3, 3))
        for number, link in enumerate(linkage.links):
            turn = data.xmat[link.body].reshape(3, 3)
            where = data.xpos[link.body] + turn @ (np.array(link.place) + centres[row, number])
            middle += masses[row, number] * where
            spin += turn @ tensors[row, number] @ turn.T + masses[row, number] * (
                where @ where * np.eye(3) - np.outer(where, where)
            )
        np.testing.assert_allclose(middle, own.body_mass @ data.xipos, atol=1e-9)
        expected = np.zeros((3, 3))
        for body in range(1, own.nbody):
            axes, where = data.ximat[body].reshape(3, 3), data.xipos[body]
            expected += axes @ np.diag(own.body_inertia[body]) @ axes.T
            expected += own.body_mass[body] * (where @ where * np.eye(3) - np.outer(where, where))
        np.testing.assert_allclose(spin, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<freejoint/>", "", "a URDF is of one robot that is free to move, and on the world hang 'thigh'"),
        (
            "<freejoint/>",
            '<joint name="lift" type="slide"/>',
            "a URDF is of one robot that is free to move, and on the world hang 'base'",
        ),
        (
            '<joint name="reach"',
            '<joint name="turn"/><joint name="reach"',
            "body 'toe' has hinge and slide; a URDF's link has one",
        ),
        ('type="slide" axis="0 0 1" range="0 0.1"', 'type="ball"', "body 'toe' has ball; a URDF's link has one hinge or slide"),
        ('type="box"', 'type="ellipsoid"', "geom 'box' is of the kind ellipsoid, which a URDF has no word for; it has sphere"),
        ('<geom name="tip" type="sphere" size="0.01" mass="0.05"/>', "", "body 'toe' moves and has no mass"),
        (
            "<actuator>",
            '<equality><joint joint1="hip"/></equality><actuator>',
            "the model has equality constraints, which a URDF",
        ),
    ],
)
def test_what_no_urdf_can_say_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert ROBOT.count(old) == 1
    spec = mujoco.MjSpec.from_string(ROBOT.replace(old, new))
    spec.compiler.boundmass = 0.0
    for body in spec.bodies[1:]:
        if not body.geoms and body.name == "toe":
            body.explicitinertial, body.mass, body.inertia = True, 1e-9, np.full(3, 1e-12)
    model = spec.compile()
    if "no mass" in message:
        model.body_mass[model.body("toe").id] = 0.0
    with pytest.raises(UserError) as caught:
        Linkage(model).write(tmp_path / "robot.urdf")
    assert str(caught.value).startswith(message)
