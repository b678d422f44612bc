"""Robots as people bring them along: what their files say in other ways than the shipped ones, right or refused in one line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

from embodied_rl.config.page import PhysicsSettings
from embodied_rl.errors import UserError
from embodied_rl.mdp.part import Part
from embodied_rl.robot import RobotError, load_robot
from embodied_rl.scene import Scene, build_scene, whole_spec

#: A table on four sliding legs; each foot is a sphere of 0.03 m, 0.2 m below the trunk.
LEG = """
<body name="{n}" pos="{x} {y} -0.1">
  <joint name="{n}" type="slide" axis="0 0 1" range="-0.05 0.05" limited="true"/>
  <geom name="{n}_shin" type="capsule" size="0.01" fromto="0 0 0 0 0 -0.05" mass="0.1" {shin}/>
  <geom name="{n}" size="0.03" pos="0 0 -0.1" mass="0.1" {foot}/><site name="{n}" pos="0 0 -0.1"/>
</body>"""
NAMES = {"FL": (0.2, 0.1), "FR": (0.2, -0.1), "RL": (-0.2, 0.1), "RR": (-0.2, -0.1)}
JOINT = "{default: 0.0, stiffness: 2000.0, damping: 20.0, effort_limit: 100.0}"
PAGE = f"""
model: table.xml
base: trunk
base_height: 0.23
joints: {{{", ".join(f"{n}: {JOINT}" for n in NAMES)}}}
feet: {{{", ".join(f"{n}: {{geoms: [{n}], site: {n}}}" for n in NAMES)}}}
bodies: {{base: [trunk]}}
mirror: {{FL: FR, RL: RR}}
"""
Build = Callable[..., Scene]


def table(
    head: str = "", tail: str = "", world: str = "", free: str = "<freejoint/>", foot: str = "", rest: str = "", base: str = ""
) -> str:
    legs = "".join(LEG.format(n=n, x=x, y=y, foot=foot, shin=rest) for n, (x, y) in NAMES.items())
    trunk = f'<body name="trunk" pos="0 0 0.4" {base}>{free}<geom name="trunk" type="box" size="0.25 0.1 0.05" mass="4" {rest}/>'
    return f'<mujoco><compiler angle="radian"/>{head}<worldbody>{world}{trunk}{legs}</body></worldbody>{tail}</mujoco>'


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def build(model: str | None = None, page: str = PAGE, collisions: str = "feet", needs: set[str] | None = None) -> Scene:
        if model is not None:
            (tmp_path / "table.xml").write_text(model)
        (tmp_path / "robot.yaml").write_text(page)
        return build_scene(load_robot(str(tmp_path)), collisions=collisions, physics=PhysicsSettings(), needs=needs or set())

    return build


def _with_joints(*names: str) -> str:
    return PAGE.replace("joints: {", f"joints: {{{''.join(f'{name}: {JOINT}, ' for name in names)}")


def _stands(model: mujoco.MjModel, scene: Scene, seconds: float = 1.0) -> float:
    """Height of the base once it has stood for a while [m]; the robot begins in its default pose."""
    data = mujoco.MjData(model)
    assert scene.root is not None
    data.qpos[scene.root.qpos + 2] = scene.robot.base_height
    for _ in range(round(seconds / model.opt.timestep)):
        mujoco.mj_step(model, data)
    return float(data.qpos[scene.root.qpos + 2])


def _dragged(scene: Scene, friction: float) -> float:
    """Horizontal force on the feet, as a share of the vertical one, while the robot slides with this sliding friction."""
    model, data = scene.model, mujoco.MjData(scene.model)
    model.geom_friction[list(scene.foot_geoms), 0] = friction
    data.qpos[2] = scene.robot.base_height
    for _ in range(200):
        mujoco.mj_step(model, data)
    data.qvel[0] = 3.0
    mujoco.mj_forward(model, data)
    along = up = 0.0
    for index in range(data.ncon):
        force = np.zeros(6)
        mujoco.mj_contactForce(model, data, index, force)
        along, up = along + float(np.hypot(force[1], force[2])), up + force[0]
    return along / up


# ------------------------------------------------------------------------------------------------- contacts with the ground


FLOOR = '<geom name="floor" type="plane" size="0 0 0.05" {}/>'
PAIRS = "<contact>{}</contact>"
GROUNDED = {
    "its own masks": dict(foot='contype="1" conaffinity="0"', rest='contype="1" conaffinity="0"', world=FLOOR.format("")),
    "a high bit": dict(foot='contype="8" conaffinity="4"', rest='contype="0" conaffinity="0"'),
    "no masks": dict(foot='contype="0" conaffinity="0"', rest='contype="0" conaffinity="0"'),
    "pairs with the floor": dict(
        foot='contype="0" conaffinity="0"',
        rest='contype="0" conaffinity="0"',
        world=FLOOR.format('contype="0" conaffinity="0"'),
        tail=PAIRS.format("".join(f'<pair geom1="{n}" geom2="floor"/>' for n in NAMES)),
    ),
    "an exclude of the world": dict(tail=PAIRS.format("".join(f'<exclude body1="world" body2="{n}"/>' for n in NAMES))),
    "contacts switched off": dict(head='<option><flag contact="disable" actuation="disable" constraint="disable"/></option>'),
    "actuators switched off": dict(head='<option actuatorgroupdisable="0"/>'),
    "a floor called ground": dict(world=FLOOR.format("").replace("floor", "ground").replace("/>", ' pos="0 0 -1"/>')),
    "a floor of its own, tilted": dict(world=FLOOR.format('euler="0.5 0 0"')),
    "a floor on a body of its own": dict(world=f'<body name="scenery">{FLOOR.format("")}</body>'),
    "a body called ground": dict(world='<body name="ground" pos="9 0 0"><geom size="0.1" contype="0" conaffinity="0"/></body>'),
    "a tendon over a geom": dict(
        free='<freejoint/><geom name="pulley" type="cylinder" size="0.02 0.02" mass="0" contype="0" conaffinity="0"/>',
        tail='<tendon><spatial><site site="FL"/><geom geom="pulley"/><site site="FR"/></spatial></tendon>',
    ),
    "a tuple of its actuators": dict(
        tail='<actuator><motor name="m" joint="FL"/></actuator>'
        '<custom><tuple name="t"><element objtype="actuator" objname="m" prm="0"/></tuple></custom>'
    ),
    "what sleeps, and what is whole in the arena alone": dict(
        head='<option><flag sleep="enable"/></option><size memory="4K" nkey="2"/>'
    ),
    "bodies that MuJoCo would fuse": dict(head='<compiler fusestatic="true" discardvisual="true"/>'),
    "looks of our names": dict(
        head='<asset><texture name="floor" type="2d" builtin="flat" width="8" height="8"/><material name="floor"/></asset>',
        world='<light name="sun" pos="0 0 3"/>',
    ),
    "defaults of all kinds": dict(
        head='<default><geom euler="0.4 0 0" priority="7" condim="1" margin="0.2" gap="0.1" solref="0.3 1"/>'
        '<motor gear="100" ctrlrange="-0.1 0.1" ctrllimited="true"/><general dyntype="filter" actdim="1"/>'
        '<light active="false"/><material rgba="1 0 0 0"/><default class="robot"><light pos="7 7 7"/></default></default>',
        base='childclass="robot"',
        foot='euler="0 0 0" priority="1" condim="3" margin="0" gap="0" solref="0.02 1"',
        rest='euler="0 0 0" margin="0" gap="0"',
    ),
}


@pytest.mark.parametrize("collisions", ["feet", "full"])
@pytest.mark.parametrize("case", GROUNDED)
def test_a_robot_stands_on_the_pages_ground(build: Build, case: str, collisions: str) -> None:
    scene = build(table(**GROUNDED[case]), collisions=collisions, needs={"foot_contact"})
    spec = whole_spec(scene.robot, collisions=collisions, physics=PhysicsSettings(), controls={}, dry_friction=True)
    for model in (scene.model, spec.compile()):
        # 6 kg/4 on a spring of 2000 N/m: 7 mm
        assert _stands(model, scene) == pytest.approx(0.23 - 4.8 * 9.81 / 4 / 2000, abs=0.004)
        assert [model.geom(g).name for g in range(model.ngeom) if model.geom_bodyid[g] == 0] == ["ground"]
        np.testing.assert_array_equal(model.geom("ground").quat, (1.0, 0.0, 0.0, 0.0))
        assert model.geom("ground").margin[0] == 0.0 and (model.actuator_gear[:, 0] == 1.0).all() and model.na == 0
    sun = scene.render_model.light(scene.render_model.nlight - 1)
    assert sun.active[0] and tuple(sun.pos) == (4.0, -5.0, 14.0)


@pytest.mark.parametrize("foot", ["", 'priority="1"', 'priority="-3"', 'contype="2" conaffinity="4" condim="4"', 'condim="1"'])
@pytest.mark.parametrize("friction", [0.1, 0.6, 1.4])
def test_a_dragged_foot_slides_with_the_friction_that_is_drawn(build: Build, foot: str, friction: float) -> None:
    head = '<option o_friction="2 2 0.1 0.1 0.1"><flag override="enable"/></option>'
    assert _dragged(build(table(head, foot=foot)), friction) == pytest.approx(friction, rel=0.02)


def test_a_floor_made_of_a_box_takes_the_friction_of_the_feet(build: Build) -> None:
    slab = '<body name="hall"><geom name="slab" type="box" size="9 9 0.1" pos="0 0 -0.0999" friction="2" priority="4"/></body>'
    scene = build(table(world=slab), collisions="full")
    assert _dragged(scene, 0.3) == pytest.approx(0.3, rel=0.02) and scene.model.geom("slab").id >= 0
    mounted = build(table(free="", foot='priority="2"'), collisions="full").model  # the robot's own geoms stay as they are
    assert mounted.geom("trunk").priority[0] == 0
    with pytest.raises(UserError, match=r"base_height: 'FL' of table\.xml is 0\.1 m in 'slab' in the default pose, which throws"):
        build(table(world=slab.replace("-0.0999", "0")), collisions="full")


def test_geoms_below_the_feet_are_told(build: Build) -> None:
    keel = '<freejoint/><geom name="keel" type="box" size="0.1 0.1 0.1" pos="0 0 -0.2" mass="1"/>'
    build(table(free=keel))  # only the feet collide
    with pytest.raises(UserError, match=r"base_height: 'keel' of table\.xml is 0\.07 m in 'ground' in the default pose"):
        build(table(free=keel), collisions="full")


def test_what_of_a_foots_link_is_lower_is_told(build: Build) -> None:
    page = PAGE.replace("geoms: [FL]", "geoms: [FL_shin]")
    with pytest.raises(UserError) as caught:
        build(table(), page, collisions="full")
    assert str(caught.value).endswith(
        "robot.yaml:6: feet.FL.geoms: 'FL' of table.xml is 0.07 m lower in the default pose; name it as well"
    )
    build(table(), PAGE.replace("geoms: [FL]", "geoms: [FL_shin, FL]"), collisions="full")


def test_a_mjcf_that_is_not_utf_8_is_one_line(build: Build, tmp_path: Path) -> None:
    build(table(head="<!-- 30° -->"))
    named = table().replace("FL_shin", "FL_füß")
    for text, encoding in ((named, "latin-1"), (f'<?xml version="1.0" encoding="UTF-16"?>{named}', "utf-16")):
        (tmp_path / "table.xml").write_bytes(text.encode(encoding))
        with pytest.raises(
            UserError, match=r"table\.xml: cannot be read: .*; the file is not UTF-8, in which MuJoCo reads an MJCF"
        ):
            build()
    (tmp_path / "table.xml").write_bytes(table(head="<!-- 30° -->").encode("latin-1"))
    build()


def test_a_foot_that_is_a_plane_is_one_line(build: Build) -> None:
    with pytest.raises(UserError, match=r"table\.xml: geom 'FL' is of a foot, and no plane moves; make it a box$"):
        build(table(foot='type="plane"').replace('size="0.03"', 'size="1 1 1"'))


def test_what_a_fluid_flows_around_stays(build: Build) -> None:
    fin = '<freejoint/><geom name="fin" type="ellipsoid" size="0.3 0.1 0.01" fluidshape="ellipsoid" mass="0" {}/>'
    deaf, wet = fin.format('contype="0" conaffinity="0"'), '<option density="1000"/>'
    model = table(wet, free=deaf)
    felt = []
    for built in (build(model).model, mujoco.MjModel.from_xml_string(model)):
        data = mujoco.MjData(built)
        data.qvel[2] = 1.0
        mujoco.mj_forward(built, data)
        felt.append(data.qfrc_fluid[2])
    assert felt[0] == pytest.approx(felt[1]) and felt[0] < -1.0
    with pytest.raises(KeyError):  # there is none
        build(table(free=deaf)).model.geom("fin")


def test_what_the_files_actuators_lend_tendons_stays(build: Build) -> None:
    model = table(
        tail='<tendon><fixed name="t" damping="1" armature="0.1"><joint joint="FL" coef="1"/></fixed></tendon>'
        '<actuator><motor tendon="t" gear="3" armature="0.02" damping="0.5"/></actuator>'
    )
    built = build(model).model
    assert (built.tendon_armature[0], built.tendon_damping[0]) == (pytest.approx(0.28), pytest.approx(5.5))


def test_a_prop_that_mujoco_would_align_keeps_its_centre_of_mass(build: Build) -> None:
    ball = (
        '<body name="prop" pos="2 0 1"><freejoint align="true"/><geom size="0.05" pos="0.2 0 0.1" mass="1" contype="0"/></body>'
    )
    for collisions in ("feet", "full"):
        model = build(table(world=ball), collisions=collisions).model
        data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        np.testing.assert_allclose(data.body("prop").xipos, (2.2, 0.0, 1.1), atol=1e-9)


def test_what_a_pair_says_of_the_floor_is_said_of_the_ground(build: Build) -> None:
    masks = dict(foot='contype="0" conaffinity="0"', world=FLOOR.format(""))
    pair = '<pair geom1="floor" geom2="{}" condim="4" friction="{}" margin="0.01" solref="0.03 1"/>'
    pairs = PAIRS.format("".join(pair.format(n, "0.4 0.4 0.02 0.003 0.003") for n in NAMES))
    model = build(table(**masks, tail=pairs)).model
    for name in NAMES:
        foot = model.geom(name)
        assert (foot.condim[0], foot.margin[0], foot.solref[0]) == (4, 0.01, 0.03)
        np.testing.assert_allclose(foot.friction, (0.4, 0.02, 0.003))
    assert model.npair == 0
    with pytest.raises(UserError) as caught:
        build(table(**masks, tail=PAIRS.format(pair.format("FL", "0.4 0.5 0.02 0.003 0.003"))))
    assert str(caught.value).endswith(
        "table.xml: the pair of 'floor' and 'FL' has friction 0.4 0.5 0.02 0.003 0.003; the ground's contacts have one number "
        "each for sliding and rolling: write the first two alike, and the last two"
    )


def test_pairs_of_the_robot_stay_where_both_geoms_do(build: Build) -> None:
    model = table(
        rest='contype="0" conaffinity="0"', tail=PAIRS.format('<pair geom1="FL" geom2="FR"/><pair geom1="FL" geom2="trunk"/>')
    )
    assert build(model).model.npair == 1
    full = build(model, collisions="full").model
    assert full.npair == 2
    # what only pairs make collide touches the ground, and nothing that no pair names
    assert not full.geom("trunk").contype[0] & full.geom("RL").conaffinity[0]
    assert not full.geom("RL").contype[0] & full.geom("trunk").conaffinity[0]
    assert full.geom("trunk").conaffinity[0] & full.geom("ground").contype[0]


def test_a_geom_of_the_robot_with_the_grounds_name_is_one_line(build: Build) -> None:
    with pytest.raises(
        UserError, match=r"table.xml: a geom is named 'ground', as ours is; give it another name \(in a URDF, its link\)$"
    ):
        build(table().replace('name="trunk" type', 'name="ground" type'))


@pytest.mark.filterwarnings("ignore:compiler attribute")
def test_a_total_mass_is_shared_out_as_in_the_file(build: Build) -> None:
    model = table('<compiler settotalmass="10"/>').replace(
        "<freejoint/>", '<freejoint/><inertial pos="0 0 0" mass="2" diaginertia="0.1 0.1 0.1"/>'
    )
    built, stock = build(model).model, mujoco.MjModel.from_xml_string(model)
    np.testing.assert_allclose(built.body_mass, stock.body_mass, rtol=1e-9)
    np.testing.assert_allclose(built.body_inertia, stock.body_inertia, rtol=1e-9)


def test_what_mujoco_refuses_is_one_line(build: Build) -> None:
    with pytest.raises(UserError) as caught:
        build(table().replace('name="FL_shin"', 'name="FL_shin" type="mesh" mesh="nowhere"'))
    assert "\n" not in str(caught.value) and "table.xml: " in str(caught.value)
    with pytest.raises(UserError) as caught:
        build(
            table().replace("<freejoint/>", '<freejoint/><body name="rod"><joint name="rod"/></body>'),
            PAGE.replace("joints: {", f"joints: {{rod: {JOINT}, "),
        )
    assert (
        "\n" not in str(caught.value) and "table.xml: cannot be compiled: " in str(caught.value) and "'rod'" in str(caught.value)
    )


def test_what_is_added_takes_nothing_from_the_files_defaults(build: Build) -> None:
    head = (
        '<default><geom priority="3" euler="0 0.3 0" margin="0.1" gap="0.05" solref="0.5 1" surfacevel="1 0 0"/>'
        '<general gear="100" dyntype="integrator" actrange="0 1" actlimited="true" ctrlrange="0 1" ctrllimited="true"/>'
        '<light diffuse="1 0 0"/></default>'
    )
    plain, found = build(table()), build(table(head, foot='euler="0 0 0" margin="0"', rest='euler="0 0 0"'))
    ours = [(scene.model, scene.model.geom("ground").id) for scene in (plain, found)]
    rest = ("geom_bodyid", "geom_rbound", "geom_priority")  # it stands below the others' priority
    for name in (one for one in dir(plain.model) if one.startswith("geom_") and one not in rest):
        assert np.array_equal(*(getattr(model, name)[index] for model, index in ours)), name
    for name in (one for one in dir(plain.model) if one.startswith("actuator_") and one != "actuator_length0"):
        assert np.array_equal(getattr(plain.model, name), getattr(found.model, name)), name
    assert np.array_equal(plain.render_model.light_diffuse, found.render_model.light_diffuse)


def test_a_motor_without_torque_is_refused(build: Build) -> None:
    with pytest.raises(RobotError, match=r"joints\.FL\.effort_limit: 0\.0 is not allowed: more than 0"):
        build(table(), PAGE.replace("effort_limit: 100.0", "effort_limit: 0.0", 1))


@pytest.mark.parametrize(
    ("option", "given"),
    [('gravity="0 -9.81 0"', "0 -9.81 0"), ('gravity="0 0 0"', "0 0 0"), ("><flag gravity='disable'/></option", "switched off")],
)
def test_gravity_that_does_not_point_down_is_one_line(build: Build, option: str, given: str) -> None:
    head = f"<option {option}/>" if "flag" not in option else f"<option{option}>"
    with pytest.raises(UserError) as caught:
        build(table(head))
    assert str(caught.value).endswith(f'table.xml: option gravity: {given}; z points up here: write gravity="0 0 -9.81"')
    assert build(table('<option gravity="0 0 -1.62"/>')).model.opt.gravity[2] == -1.62


# ----------------------------------------------------------------------------------------------------------------- the base


X, Z = '<joint name="x" type="slide" axis="1 0 0"/>', '<joint name="z" type="slide" axis="0 0 1"/>'
PLANAR = f'{X}{Z}<joint name="pitch" axis="0 1 0"/>'


def test_a_base_that_joints_move_is_one_line(build: Build) -> None:
    with pytest.raises(UserError) as caught:
        build(table(free=PLANAR), _with_joints("x", "z", "pitch"))
    assert str(caught.value).endswith(
        "robot.yaml: base: 'trunk' is moved by the joint 'x', and a base has a free joint or none: name the body that the robot "
        "is mounted on, or give this one a freejoint"
    )
    rail = table(free="").replace('<body name="trunk"', f'<body name="rail">{X}<geom size="0.1"/><body name="trunk"')
    with pytest.raises(UserError, match="base: 'trunk' is moved by the joint 'x'"):
        build(rail.replace("</worldbody>", "</body></worldbody>"), _with_joints("x"))


def test_a_floating_base_that_an_equality_holds_is_one_line(build: Build) -> None:
    held = '<equality><weld body1="trunk"{}/></equality>'
    with pytest.raises(
        UserError, match=r"base: 'trunk' floats, and an equality constraint of table\.xml holds it to the world; take"
    ):
        build(table(tail=held.format("")))
    build(table(tail=held.format(' active="false"')))
    post = '<body name="post" pos="0 0 0.4" {}><geom size="0.05" contype="0" conaffinity="0"/></body>'
    chest = '<freejoint/><site name="s"/><body name="chest"><geom size="0.01" mass="0.1"/></body>'
    for world, ends, to in (
        (post.format('mocap="true"'), 'weld body1="trunk" body2="post"', "'post'"),
        (post.format(""), 'connect body1="post" body2="chest" anchor="0 0 0"', "'post'"),
        ('<site name="here" pos="0 0 0.4"/>', 'weld site1="s" site2="here"', "the world"),
    ):
        with pytest.raises(UserError, match=f"base: 'trunk' floats, and an equality constraint of table.xml holds it to {to}; "):
            build(table(world=world, free=chest, tail=f"<equality><{ends}/></equality>"))


def test_a_base_that_mocap_moves_is_one_line(build: Build) -> None:
    with pytest.raises(UserError, match=r"base: 'trunk' is a mocap body in table\.xml; give it a freejoint, or take mocap away$"):
        build(table(free="", base='mocap="true"'))


def test_a_base_that_lies_is_one_line(build: Build) -> None:
    with pytest.raises(UserError, match=r"base: the z axis of 'trunk' in table\.xml is 1\.6 rad off the vertical; z points up"):
        build(table(base='euler="1.5708 0 0"'))
    assert build(table(base='euler="0 0 1.5708"')).root is not None


def test_a_robot_mounted_over_a_floor_elsewhere_is_one_line(build: Build) -> None:
    for floor, said in ((FLOOR.format('pos="0 0 -1"'), "at z = -1"), (FLOOR.format('euler="0.2 0 0"'), "not level")):
        with pytest.raises(UserError, match=f"is mounted over a plane that is {said}, and our ground is at z = 0; move both"):
            build(table(free="", world=floor))
    build(table(free="", world=FLOOR.format("") + FLOOR.format('euler="0 1.57 0"').replace("floor", "wall")))


def test_a_mounted_base_is_where_its_mount_has_it(build: Build) -> None:
    mounted = table(free="").replace('<body name="trunk"', '<body name="mount" pos="0 0 1" quat="0 0 0 1"><body name="trunk"')
    scene = build(mounted.replace("</worldbody>", "</body></worldbody>"))
    part = Part(scene, torch.device("cpu"))
    assert scene.root is None and not part.floating
    assert part.fixed_base_pos.tolist() == pytest.approx([0.0, 0.0, 1.4]) and part.fixed_base_quat.tolist() == [
        0.0,
        0.0,
        0.0,
        1.0,
    ]


# --------------------------------------------------------------------------------------------------------- the default pose


FOOT = "'FL' (site 'FL' below 'trunk' of table.xml)"
POSE = "the ground in the default pose"
OUTSIDE = "is outside the joint's range in table.xml,"
EQUALITY = "the equality constraint with 'FL' in table.xml"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "t: 0.23",
            "t: 0.4",
            f"4: base_height: 0.4 has the lowest foot, {FOOT}, 0.17 m above {POSE}; feet just touch at 0.23",
        ),
        (
            "t: 0.23",
            "t: 0.1",
            f"4: base_height: 0.1 has the lowest foot, {FOOT}, 0.13 m in {POSE}; feet just touch at 0.23",
        ),
        ("FL: {default: 0.0", "FL: {default: 0.3", f"5: joints.FL.default: 0.3 {OUTSIDE} [-0.05, 0.05]"),
        ("FL: {default: 0.0", "FL: {default: 0.02", f"5: joints.FR.default: 0, and {EQUALITY} wants -0.04"),
    ],
)
def test_a_pose_that_cannot_be_is_one_line(build: Build, old: str, new: str, message: str) -> None:
    assert old in PAGE
    model = table(tail='<equality><joint joint1="FR" joint2="FL" polycoef="0 -2 0 0 0"/></equality>')
    assert build(model).model.neq == 1
    with pytest.raises(UserError) as caught:
        build(model, PAGE.replace(old, new))
    assert str(caught.value).endswith(f"robot.yaml:{message}")


LOOPS = {
    "a loop": ('<equality><connect name="loop" body1="FL" body2="FR" anchor="0 0 0"/></equality>', "0.02 off", "'loop'"),
    "tendons": (
        '<tendon><fixed name="a"><joint joint="FL" coef="1"/></fixed></tendon><equality><tendon tendon1="a"/></equality>',
        "0.02 off",
        "equality constraint 0",
    ),
    "a range": (
        '<tendon><fixed name="a" range="-1 0.003"><joint joint="FL" coef="1"/></fixed></tendon>',
        "0.017 off",
        "the range of the tendon 'a'",
    ),
}


@pytest.mark.parametrize("case", LOOPS)
def test_a_pose_that_pulls_at_what_closes_is_one_line(build: Build, case: str) -> None:
    tail, off, what = LOOPS[case]
    build(table(tail=tail))
    with pytest.raises(UserError) as caught:
        build(table(tail=tail), PAGE.replace("FL: {default: 0.0", "FL: {default: 0.02"))
    assert f"robot.yaml:5: joints: the default pose is {off} what" in str(caught.value) and what in str(caught.value)


def test_a_joint_is_welded_inside_its_range(build: Build) -> None:
    page = PAGE.replace("FL: {default: 0.0", "FL: {default: 0.4") + "weld: [FL]\n"
    with pytest.raises(
        UserError, match=r"joints\.FL\.default: 0\.4 is outside the joint's range in table\.xml, \[-0\.05, 0\.05\]$"
    ):
        build(table(), page.replace("mirror: {FL: FR, RL: RR}", ""))


def test_a_range_turned_round_is_one_line(build: Build) -> None:
    model = table().replace('range="-0.05 0.05" limited="true"', 'range="0.05 -0.05"')
    with pytest.raises(UserError, match=r"joints\.FL: its range in table\.xml is \[0\.05, -0\.05\]; the lower end stands first"):
        build(model)


def test_joints_without_a_name_are_one_line(build: Build) -> None:
    tail = '<freejoint/><body name="tail"><joint/><joint axis="1 0 0"/><geom size="0.01" mass="0.1"/></body>'
    with pytest.raises(UserError) as caught:
        build(table(free=tail))
    assert str(caught.value).endswith(
        "joints: 2 joints of table.xml have no name, the first of body 'tail'; name and list every joint, or take out what is "
        "not the robot's"
    )


def test_feet_of_mirror_partners_stand_reflected(build: Build) -> None:
    scene = build(table())
    assert scene.robot.joint_mirror()[0] == (1, 0, 3, 2)
    turned = table().replace('<body name="FR" pos="0.2 -0.1 -0.1">', '<body name="FR" pos="0.2 -0.1 -0.1" euler="0 0.8 0">')
    turned = turned.replace('<joint name="FR" type="slide" axis="0 0 1"', '<joint name="FR" type="slide" axis="-0.717 0 0.697"')
    with pytest.raises(UserError, match=r"mirror: the sites of the feet, 'FL' below 'trunk' and 'FR' .*, are 0\.078 m"):
        build(turned).robot.joint_mirror()


def test_a_height_that_is_about_right_is_right(build: Build) -> None:
    for height in ("0.19", "0.27"):
        build(table(), PAGE.replace("0.23", height))
    build(table(free=""), PAGE.replace("0.23", "5.0"))  # a fixed base is where the file has it


# --------------------------------------------------------------------------------------------------------------------- URDF

INERTIAL = '<inertial><mass value="{}"/><inertia ixx="0.02" iyy="0.02" izz="0.02" ixy="0" ixz="0" iyz="0"/></inertial>'
#: A hopper: a trunk, a leg that slides, a foot behind a fixed joint.
HOPPER = f"""
<robot name="hopper"{{attributes}}>{{above}}
  <link name="trunk">{INERTIAL.format(4)}{{trunk}}</link>
  <link name="leg">{INERTIAL.format(1)}</link>
  <link name="foot">{{foot}}<collision><geometry><sphere radius="0.03"/></geometry></collision></link>
  <joint name="leg" type="prismatic"><parent link="trunk"/><child link="leg"/><axis xyz="0 0 1"/>{{limit}}</joint>
  <joint name="ankle" type="fixed"><parent link="leg"/><child link="foot"/><origin xyz="0 0 -0.2"/></joint>{{more}}
</robot>"""
HOPPER_PAGE = f"""
model: hopper.urdf
base: trunk
base_height: 0.23
joints: {{leg: {JOINT}}}
feet: {{foot: {{geoms: [foot], site: foot}}}}
"""
HELD = '<link name="{0}"/><joint name="held" type="fixed"><parent link="{0}"/><child link="{1}"/><origin xyz="0 0 1"/></joint>'
CORNER = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
Hop = Callable[..., Scene]


@pytest.fixture
def hop(tmp_path: Path) -> Hop:
    def hop(page: str = HOPPER_PAGE, file: str = "hopper.urdf", **parts: str) -> Scene:
        text = HOPPER.format(**{"attributes": "", "above": "", "trunk": "", "foot": "", "limit": "", "more": ""} | parts)
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
        (tmp_path / "robot.yaml").write_text(page.replace("hopper.urdf", file))
        return build_scene(load_robot(str(tmp_path)), collisions="feet", physics=PhysicsSettings())

    return hop


def _visual(file: str, tag: str = "visual") -> str:
    return f'<{tag}><geometry><mesh filename="{file}" scale="0.1 0.1 0.1"/></geometry></{tag}>'


@pytest.mark.parametrize("above", ["", HELD.format("base_footprint", "trunk"), HELD.format("a", "b") + HELD.format("b", "trunk")])
def test_links_without_anything_above_the_base_are_left_out(hop: Hop, above: str) -> None:
    scene = hop(above=above.replace('<link name="b"/><joint name="held"', '<link name="b"/><joint name="again"'))
    assert scene.root is not None and (scene.model.nq, scene.model.nbody) == (8, 4)
    assert scene.model.body("trunk").parentid[0] == 0 and _stands(scene.model, scene) == pytest.approx(0.23 - 0.0245, abs=0.004)


def test_a_link_world_holds_the_robot_as_in_stock(hop: Hop) -> None:
    scene = hop(above=HELD.format("world", "trunk"))
    assert scene.root is None and (scene.model.nq, scene.model.body("trunk").pos[2]) == (1, 1.0)
    floating = HELD.format("world", "trunk").replace('type="fixed"', 'type="floating"')
    assert hop(above=floating).model.nq == 8


def test_a_base_below_a_link_with_a_mass_is_one_line(hop: Hop) -> None:
    frame = HELD.format("frame", "trunk").replace("/>", f">{INERTIAL.format(1)}</link>", 1)
    with pytest.raises(UserError, match=r"base: 'trunk' hangs on 'frame', which has the free joint; write base: frame$"):
        hop(above=frame)
    page = HOPPER_PAGE.replace("base: trunk", "base: base_footprint").replace("0.23", "-0.77")
    assert hop(page, above=HELD.format("base_footprint", "trunk")).root is not None
    low = HELD.format("base_footprint", "trunk").replace("0 0 1", "0 0 0.2299")  # a base whose frame is on the ground
    assert hop(page.replace("-0.77", "0.0"), above=low).root is not None


def test_visuals_that_cannot_be_read_are_left_out_with_one_warning(
    hop: Hop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "trunk.dae").touch()
    (tmp_path / "trunk.stl").write_text(f"solid trunk {' ' * 90} facet\nendsolid")
    files = ["package://hopper_description/meshes/gone.STL", "package://hopper_description/trunk.dae", "trunk.stl"]
    with caplog.at_level(logging.WARNING):
        scene = hop(trunk="".join(_visual(file) for file in files))
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith(f"{tmp_path}/hopper.urdf: visuals are left out, which changes looks alone: gone.STL is not there; ")
    assert "trunk.dae is none of .stl, .obj, .msh; trunk.stl cannot be read: Error: " in said and "\n" not in said
    assert scene.render_model.nmesh == 0
    for file, why in zip(files, ("is not there", "is none of .stl, .obj, .msh", "cannot be read: Error: "), strict=True):
        with pytest.raises(UserError) as caught:
            hop(trunk=_visual(file, "collision"))
        message = str(caught.value)
        assert f"hopper.urdf: cannot be read: link 'trunk': its collision mesh {file} {why}" in message and "\n" not in message


@pytest.mark.parametrize(
    ("file", "given", "lies"),
    [
        ("hopper.urdf", "package://hopper/meshes/corner.obj", "meshes/corner.obj"),
        ("urdf/hopper.urdf", "package://hopper/meshes/corner.obj", "meshes/corner.obj"),
        ("hopper/hopper.urdf", "package://hopper/meshes/corner.obj", "hopper/meshes/corner.obj"),
        ("urdf/hopper.urdf", "package://hopper_meshes/corner.obj", "hopper_meshes/corner.obj"),
        ("urdf/hopper.urdf", "model://hopper_meshes/a/corner.obj", "hopper_meshes/a/corner.obj"),
        ("urdf/hopper.urdf", "../meshes/corner.obj", "meshes/corner.obj"),
        ("urdf/hopper.urdf", "file://{}/elsewhere/corner.obj", "elsewhere/corner.obj"),
    ],
)
def test_a_mesh_is_found_in_the_layouts_of_packages(hop: Hop, tmp_path: Path, file: str, given: str, lies: str) -> None:
    (tmp_path / lies).parent.mkdir(parents=True)
    (tmp_path / lies).write_text(CORNER)
    scene = hop(file=file, trunk=_visual(given.format(tmp_path), "collision"))
    assert scene.render_model.nmesh == 1


def test_meshes_of_one_name_in_two_folders_are_two(hop: Hop, tmp_path: Path) -> None:
    for folder, size in (("visual", 1), ("collision", 3)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "trunk.obj").write_text(CORNER.replace("1 0 0\n", f"{size} 0 0\n", 1))
    model = hop(trunk=_visual("visual/trunk.obj") + _visual("collision/trunk.obj", "collision")).render_model
    edges = [np.linalg.norm(np.diff(model.mesh_vert[start : start + 2], axis=0)) for start in model.mesh_vertadr]
    np.testing.assert_allclose(edges, (0.1, 0.3), rtol=1e-5)


def test_xacro_is_one_line_that_says_how_to_expand_it(hop: Hop, tmp_path: Path) -> None:
    declared = ' xmlns:xacro="http://www.ros.org/wiki/xacro"'
    made = "<!-- from legs.urdf.xacro, ${prefix} and <xacro:include> were expanded -->"
    assert hop(attributes=declared, more=made).model.nq == 8  # xacro's own output names it still
    for parts in ({"more": '<xacro:include filename="legs.xacro"/>'}, {"above": HELD.format("${prefix}base", "trunk")}):
        for file in ("hopper.urdf.xacro", "hopper.xacro", "hopper.urdf"):
            with pytest.raises(UserError) as caught:
                hop(file=file, attributes=declared, **parts)
            becomes = "hopper.urdf" if file.endswith(".xacro") else "hopper_expanded.urdf"
            said = "cannot be read: is xacro, which makes a URDF; expand it first: ros2 run xacro xacro"
            assert str(caught.value).endswith(f"{said} {tmp_path / file} -o {becomes}")


WHEEL = (
    f'<link name="wheel">{INERTIAL.format(1)}</link><joint name="wheel" type="continuous"><parent link="trunk"/>'
    '<child link="wheel"/>{}</joint>'
)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            {"above": f'<link name="arm">{INERTIAL.format(1)}</link>'},
            "2 links are no joint's child (arm, trunk); a URDF has one root",
        ),
        ({"limit": '<limit lower="1" upper="-1"/>'}, "joint 'leg': its limit is from 1 to -1; the lower first"),
        ({"more": WHEEL.format('<mimic joint="lag"/>')}, "joint 'wheel': it mimics 'lag', and no revolute, continuous or"),
        ({"more": WHEEL.format('<mimic joint="ankle"/>')}, "joint 'wheel': it mimics 'ankle', and no revolute, continuous or"),
        ({"foot": INERTIAL.format(-1)}, "link 'foot': its mass is -1; allowed: 0 or more"),
        ({"more": '<link name="leg"/>'}, "2 links are called 'leg'; give each a name of its own"),
    ],
)
def test_what_mujoco_takes_for_something_else_is_one_line(hop: Hop, parts: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        hop(**parts)
    assert f"hopper.urdf: cannot be read: {said}" in str(caught.value) and "\n" not in str(caught.value)


def test_names_that_two_elements_would_have(hop: Hop) -> None:
    shape = '<collision><geometry><sphere radius="0.02"/></geometry></collision>'
    more = "".join(WHEEL.replace("wheel", name).replace("</link>", f"{shape}</link>") for name in ("foot_1", "trunk_1"))
    more = more.replace('joint name="foot_1"', 'joint name="trunk"')
    page = HOPPER_PAGE.replace("joints: {", f"joints: {{trunk: {JOINT}, trunk_1: {JOINT}, ").replace("[foot]", "[foot, foot_2]")
    scene = hop(page, foot=shape, more=more.replace("{}", ""))
    assert scene.root is not None and scene.model.geom("foot_2").bodyid == scene.model.geom("foot").bodyid
    assert scene.model.joint(0).name == "trunk_2"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "none"])
def test_a_urdf_of_any_encoding(tmp_path: Path, encoding: str) -> None:
    declared = "" if encoding in ("none", "utf-8") else f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>'
    parts = {"attributes": ' xmlns="http://www.ros.org"', "above": "", "trunk": "", "foot": "", "limit": "", "more": ""}
    text = (declared + HOPPER.format(**parts).strip()).replace("leg", "Fuß").replace("<!--", "")
    (tmp_path / "hopper.urdf").write_bytes(text.encode("latin-1" if encoding == "none" else encoding))
    (tmp_path / "robot.yaml").write_text(HOPPER_PAGE.replace("leg", "Fuß"), encoding="utf-8")
    scene = build_scene(load_robot(str(tmp_path)), collisions="full", physics=PhysicsSettings())
    assert scene.model.joint("Fuß").id == 1 and scene.model.body_mass.sum() == 5.0


def test_joints_as_urdfs_have_them(hop: Hop) -> None:
    for limit in ("", '<limit effort="1" velocity="1"/>'):
        assert not hop(limit=limit).model.joint("leg").limited[0]
    others = (
        '<gazebo reference="leg"><mesh filename="nowhere.dae"/></gazebo><transmission name="t"><joint name="leg"/></transmission>'
        '<ros2_control name="r" type="system"><joint name="leg"/></ros2_control>'
    )
    wheel = (
        f'<link name="wheel">{INERTIAL.format(1)}</link><joint name="wheel" type="continuous"><parent link="trunk"/>'
        '<child link="wheel"/><mimic joint="leg" multiplier="-2" offset="0.1"/></joint>'
    )
    page = HOPPER_PAGE.replace("joints: {", f"joints: {{wheel: {JOINT.replace('default: 0.0', 'default: 0.1')}, ")
    model = hop(page, more=others + wheel).model
    assert (model.nq, model.neq) == (9, 1) and not model.joint("wheel").limited[0]
    with pytest.raises(
        UserError, match=r"joints.wheel.default: 0, and the equality constraint with 'leg' in hopper.urdf wants 0.1$"
    ):
        hop(page.replace("default: 0.1", "default: 0.0"), more=wheel)
    assert hop(file="hopper.xml").model.nq == 8  # a URDF by its first element
