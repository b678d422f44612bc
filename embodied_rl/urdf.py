"""A URDF as MuJoCo reads it, with what a URDF has no words for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    import mujoco


def read_urdf(path: Path, base: str) -> mujoco.MjSpec:
    """Read the robot of a URDF, free to move.

    Visuals (group 2) and links behind fixed joints are kept. A URDF names neither sites nor geoms: each link gets a
    site with its name at its origin, its collision geoms (group 3, deaf to each other) are called `LINK`, `LINK_1`,
    ..., and the link `base` gets a free joint.

    Raises:
        ValueError: the file is no URDF that MuJoCo can read.
    """
    import mujoco

    try:
        spec = mujoco.MjSpec.from_string(_with_extension(path))
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    for body in spec.bodies[1:]:
        body.add_site(name=body.name)
        collisions = 0
        for geom in body.geoms:
            if not body.explicitinertial:
                geom.density = 0.0  # a link without <inertial> has no mass
            if not geom.contype:
                geom.group = 2
                continue
            geom.name = f"{body.name}_{collisions}" if collisions else body.name
            geom.group, geom.contype, geom.conaffinity = 3, 0, 1
            collisions += 1
    body = spec.body(base)
    if body is not None and not body.joints:
        body.add_freejoint(name=base)
    return spec


def _with_extension(path: Path) -> str:
    """Tell MuJoCo in the text to keep visuals and links behind fixed joints, and with absolute mesh paths."""
    robot = ElementTree.parse(path).getroot()
    compiler = robot.find("mujoco/compiler")
    if compiler is None:
        compiler = ElementTree.SubElement(ElementTree.SubElement(robot, "mujoco"), "compiler")
    compiler.attrib.update(discardvisual="false", fusestatic="false", strippath="false")
    for mesh in robot.iter("mesh"):
        # package://NAME/meshes/foot.stl lies at meshes/foot.stl in the robot's folder.
        file = re.sub(r"^(package://[^/]*/|file://)", "", mesh.get("filename", ""))
        mesh.set("filename", str(path.parent / compiler.get("meshdir", "") / file))
    return ElementTree.tostring(robot, encoding="unicode")


def as_mujoco_reads(path: Path, *, whole: bool) -> str:
    """Give a URDF's text with the meshes where ours are, to be read as MuJoCo alone does.

    Args:
        path: the file.
        whole: keep visuals and links behind fixed joints, as ours does; else as the file itself says.
    """
    text = _with_extension(path)
    if whole:
        return text
    robot, given = ElementTree.fromstring(text), ElementTree.parse(path).getroot().find("mujoco/compiler")
    for compiler in robot.iterfind("mujoco/compiler"):
        for key in ("discardvisual", "fusestatic"):
            del compiler.attrib[key]
            if given is not None and key in given.attrib:
                compiler.set(key, given.attrib[key])
    return ElementTree.tostring(robot, encoding="unicode")
