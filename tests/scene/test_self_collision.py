"""What of a robot meets itself, by what MuJoCo finds in contact."""

from __future__ import annotations

from pathlib import Path

import mujoco
import pytest

from embodied_rl.config.page import PhysicsSettings, SceneSettings
from embodied_rl.robot import load_robot
from embodied_rl.scene import build_scene
from embodied_rl.scene.report import report

#: Two legs that swing towards each other, below a trunk that their hips are in; the file lets them meet or not.
LEG = """<body name="{side}_leg" pos="0 {y} 0">
  <joint name="{side}_hip" axis="1 0 0" range="-1 1"/>
  <geom name="{side}_shin" type="capsule" size="0.03" fromto="0 0 0.05 0 0 -0.3" {masks}/>
  <geom name="{side}_foot" size="0.02" pos="0 0 -0.38" {masks}/> <site name="{side}_sole" pos="0 0 -0.38"/>
</body>"""
PAGE = """
name: biped
model: robot.xml
base: trunk
base_height: 0.4
joints:
  left_hip: {default: 0.0, stiffness: 20.0, damping: 0.5, effort_limit: 20.0}
  right_hip: {default: 0.0, stiffness: 20.0, damping: 0.5, effort_limit: 20.0}
feet:
  left: {geoms: [left_foot], site: left_sole, gait_offset: 0.0}
  right: {geoms: [right_foot], site: right_sole, gait_offset: 0.5}
bodies: {shins: [left_leg, right_leg]}
mirror: {left: right}
"""
DEAF = 'contype="0" conaffinity="1"'
SHINS, FEET = {"left_shin", "right_shin"}, {"left_foot", "right_foot"}


@pytest.fixture
def biped(tmp_path: Path):
    def make(masks: str) -> str:
        legs = "".join(LEG.format(side=side, y=y, masks=masks) for side, y in (("left", 0.1), ("right", -0.1)))
        trunk = f'<geom name="trunk" type="box" size=".1 .15 .06" {masks}/>'
        pair = '<contact><pair name="shins" geom1="left_shin" geom2="right_shin"/></contact>'
        body = f'<worldbody><body name="trunk" pos="0 0 0.4"><freejoint/>{trunk}{legs}</body></worldbody>'
        (tmp_path / "robot.xml").write_text(f"<mujoco>{body}{pair}</mujoco>")
        (tmp_path / "robot.yaml").write_text(PAGE)
        return str(tmp_path)

    return make


def touching(model: mujoco.MjModel, *, swing: float, height: float) -> set[frozenset[str]]:
    """Which geoms touch, with both legs swung inward."""
    data = mujoco.MjData(model)
    data.qpos[2], data.qpos[7], data.qpos[8] = height, swing, -swing
    mujoco.mj_forward(model, data)
    return {frozenset(model.geom(geom).name for geom in pair) for pair in data.contact.geom}


@pytest.mark.parametrize("collisions", ["feet", "full"])
@pytest.mark.parametrize("masks", [DEAF, 'contype="1" conaffinity="1"', 'contype="6" conaffinity="2"'])
@pytest.mark.parametrize("how", ["file", "off", "pairs", "all"])
def test_what_meets_what(biped, collisions: str, masks: str, how: str) -> None:
    robot, meets = load_robot(biped(masks)), masks != DEAF
    physics, world = PhysicsSettings(), SceneSettings(collisions=collisions, self_collision=how)  # pyright: ignore[reportArgumentType]
    scene = build_scene(robot, physics=physics, needs=("foot_contact",), **world.model_dump())
    expected = {
        "file": ({frozenset(FEET)} if meets else set()) | ({frozenset(SHINS)} if collisions == "full" else set()),
        "off": set(),
        "pairs": {frozenset(SHINS)},
        # the trunk is around the hips, as it is in the default pose; shins are as far from the other's foot
        "all": {frozenset(SHINS), frozenset(FEET)},
    }[how]
    among = touching(scene.model, swing=-0.32, height=2.0)
    assert {pair for pair in among if "ground" not in pair} == expected
    on_ground = touching(scene.model, swing=0.0, height=0.2)
    assert frozenset(("ground", "left_foot")) in on_ground
    assert (frozenset(("ground", "left_shin")) in on_ground) is (collisions == "full")
    assert [str(one) for one in report(scene, physics, world).unexplained] == []
