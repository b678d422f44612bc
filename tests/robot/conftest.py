"""Robots written in the tests themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from embodied_rl.robot import RobotError, RobotSpec, load_robot

#: A trunk with two legs; each has a hip of two joints on one body, a knee, a foot of two shapes.
LEG = """
  <body name="{side}_thigh" pos="0 {y} 0">
    <joint name="{side}_hip" axis="1 0 0"/><joint name="{side}_pitch" axis="0 1 0"/>
    <geom type="capsule" fromto="0 0 0 0 0 -.2" size=".03"/>
    <body name="{side}_shin" pos="0 0 -.2">
      <joint name="{side}_knee" axis="0 1 0"/>
      <geom type="capsule" fromto="0 0 0 0 0 -.2" size=".02"/>
      <geom name="{side}_sole" type="box" size=".08 .03 .01" pos="0 0 -.2"/>
      <geom name="{side}_toe" type="sphere" size=".01" pos=".08 0 -.2"/>
      <site name="{side}_foot" pos="0 0 -.2"/>
    </body>
  </body>"""
BIPED_XML = f"""
<mujoco><worldbody><body name="trunk"><freejoint/><geom size=".1"/>
  {LEG.format(side="left", y=0.1)}{LEG.format(side="right", y=-0.1)}
</body></worldbody></mujoco>"""
BIPED = """\
name: biped
model: biped.xml
base: trunk
base_height: 0.41
motors:
  hip: {stiffness: 20.0, damping: 1.0, effort_limit: 5.0, velocity_limit: 30.0}
  knee: {natural_frequency: 10.0, damping_ratio: 2.0, armature: 0.01, effort_limit: 8.0, joint_damping: 0.2}
joints:
  left_hip: {default: 0.1, motor: hip}
  left_pitch: {default: -0.2, motor: hip, friction_loss: 0.3}
  left_knee: {default: 0.4, motor: knee}
  right_hip: {default: -0.1, motor: hip}
  right_pitch: {default: -0.2, motor: hip, effort_limit: 6.0}
  right_knee: {default: 0.4, motor: knee, armature: 0.02}
groups:
  hips: [left_hip, right_hip]
  pitches: [right_pitch, left_pitch]
  upper: [pitches, hips]
feet:
  left: {geoms: [left_sole, left_toe], site: left_foot, gait_offset: 0.0}
  right: {geoms: [right_sole, right_toe], site: right_foot, gait_offset: 0.5}
bodies: {shins: [left_shin, right_shin]}
mirror: {left: right}
"""


@pytest.fixture
def page() -> str:
    """The text of the biped's page."""
    return BIPED


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a robot's folder."""

    def write(page: str = BIPED, name: str = "biped", xml: str | None = BIPED_XML) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        if xml is not None:
            (folder / "biped.xml").write_text(xml)
        (folder / "robot.yaml").write_text(page)
        return folder

    return write


@pytest.fixture
def biped(write: Callable[..., Path]) -> RobotSpec:
    return load_robot(str(write()))


@pytest.fixture
def mistakes(write: Callable[..., Path]) -> Callable[..., list[str]]:
    """List what is said of the biped's page after a replacement, without the file's name."""

    def mistakes(old: str, new: str, xml: str = BIPED_XML) -> list[str]:
        assert old in BIPED
        folder = write(BIPED.replace(old, new, 1), xml=xml)
        with pytest.raises(RobotError) as caught:
            load_robot(str(folder)).mjspec()
        return [line.removeprefix(f"{folder / 'robot.yaml'}:") for line in str(caught.value).splitlines()]

    return mistakes
