"""A quadruped as a URDF, whose legs have two links of 0.2 m and a foot of 0.02 m."""

from __future__ import annotations

#: A leg; {s} is its name.
_LEG = """
  <joint name="{s}_hip" type="revolute"><parent link="trunk"/><child link="{s}_hip_link"/><origin xyz="{x} {y} 0"/>
    <axis xyz="1 0 0"/><limit lower="-0.8" upper="0.8" effort="20" velocity="30"/></joint>
  <link name="{s}_hip_link"><inertial><mass value="0.5"/><inertia ixx="1e-3" iyy="1e-3" izz="1e-3" ixy="0" ixz="0" iyz="0"/>
    </inertial></link>
  <joint name="{s}_thigh" type="revolute"><parent link="{s}_hip_link"/><child link="{s}_thigh_link"/><origin xyz="0 {out} 0"/>
    <axis xyz="0 1 0"/><limit lower="-2" upper="2" effort="25" velocity="20"/><dynamics damping="0.1" friction="0.1"/></joint>
  <link name="{s}_thigh_link"><inertial><origin xyz="0 0 -0.1"/><mass value="0.7"/>
    <inertia ixx="3e-3" iyy="3e-3" izz="1e-3" ixy="0" ixz="0" iyz="0"/></inertial></link>
  <joint name="{s}_calf" type="revolute"><parent link="{s}_thigh_link"/><child link="{s}_calf_link"/><origin xyz="0 0 -0.2"/>
    <axis xyz="0 1 0"/><limit lower="-2.6" upper="-0.9" effort="25" velocity="20"/></joint>
  <link name="{s}_calf_link"><collision><origin xyz="0 0 -0.1"/><geometry><box size="0.02 0.02 0.2"/></geometry></collision>
    <inertial><origin xyz="0 0 -0.1" rpy="0 0.1 0"/><mass value="0.2"/>
    <inertia ixx="1e-3" iyy="1e-3" izz="5e-4" ixy="0" ixz="0" iyz="0"/></inertial></link>
  <joint name="{s}_fixed" type="fixed"><parent link="{s}_calf_link"/><child link="{s}_foot"/><origin xyz="0 0 -0.2"/></joint>
  <link name="{s}_foot"><collision><geometry><sphere radius="0.02"/></geometry></collision></link>"""


def urdf() -> str:
    """Write a quadruped."""
    trunk = '<link name="trunk"><collision><geometry><box size="0.4 0.2 0.1"/></geometry></collision><inertial><mass value="6"/>'
    trunk += '<inertia ixx="0.02" iyy="0.06" izz="0.07" ixy="0" ixz="0" iyz="0"/></inertial></link>'
    sides = {"FL": (0.2, 0.1), "FR": (0.2, -0.1), "RL": (-0.2, 0.1), "RR": (-0.2, -0.1)}
    legs = (_LEG.format(s=side, x=x, y=y, out=0.8 * y) for side, (x, y) in sides.items())
    return f'<robot name="dog">{trunk}{"".join(legs)}</robot>'
