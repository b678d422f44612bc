"""A URDF as MuJoCo reads it, with what a URDF has no words for."""

from __future__ import annotations

import functools
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    import mujoco

log = logging.getLogger("embodied_rl")

#: Formats of meshes that MuJoCo reads.
MESHES = (".stl", ".obj", ".msh")


def read_urdf(path: Path, base: str) -> mujoco.MjSpec:
    """Read the robot of a URDF, free to move.

    Visuals (group 2) and links behind fixed joints are kept. A URDF names neither sites nor geoms: each link gets a
    site with its name at its origin, its collision geoms (group 3, deaf to each other) are called `LINK`, `LINK_1`,
    ..., and the link `base` gets a free joint, unless it is fixed to a link `world`. An empty root link that only holds the
    next one (`base_footprint`) is left out; so are visuals whose meshes cannot be read, with a warning.

    Raises:
        ValueError: the file is no URDF that MuJoCo can read.
    """
    import mujoco

    try:
        text = _with_extension(path)
        spec, held = mujoco.MjSpec.from_string(text), ElementTree.fromstring(text).find("link[@name='world']") is not None
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
    if body is not None and not body.joints and body.parent.name == "world" and not held:
        body.add_freejoint(name=base)
    return spec


def refuse_xacro(path: Path, text: str) -> None:
    """Refuse what makes a URDF and is none yet.

    Raises:
        ValueError: it is xacro; one line with the command that expands it.
    """
    if path.suffix == ".xacro" or "<xacro:" in text or "$(find " in text:
        stem = path.name.removesuffix(".xacro").removesuffix(".urdf")
        raise ValueError(f"is xacro, which makes a URDF; expand it first: ros2 run xacro xacro {path} -o {stem}.urdf")


def find_mesh(given: str, path: Path, meshdir: str = "") -> Path | None:
    """Find the file that a URDF at `path` means by a mesh's name; None where it is nowhere.

    package://NAME/meshes/foot.stl lies in a folder NAME above the file, or in the robot's own folder, or in the one above, where
    urdf/ lies beside meshes/.
    """
    name, package = (
        re.sub(r"^(package://[^/]*/|file://|model://[^/]*/)", "", given),
        re.match(r"^(?:package|model)://([^/]*)/", given),
    )
    folder = path.resolve().parent
    places = [folder / meshdir / name, folder / name, *(up / name for up in list(folder.parents)[:2])]
    if package:
        places += [up / package[1] / name for up in (folder, *folder.parents)]
    return next((place for place in places if place.is_file()), None)


def _with_extension(path: Path) -> str:
    """Tell MuJoCo in the text to keep visuals and links behind fixed joints, and with absolute mesh paths."""
    text = path.read_text(encoding="utf-8", errors="replace")
    refuse_xacro(path, text)
    robot = ElementTree.fromstring(text)
    compiler = robot.find("mujoco/compiler")
    if compiler is None:
        compiler = ElementTree.SubElement(ElementTree.SubElement(robot, "mujoco"), "compiler")
    compiler.attrib.update(discardvisual="false", fusestatic="false", strippath="false")
    meshdir = compiler.attrib.pop("meshdir", "")
    _without_empty_root(robot)
    left_out = []
    for link in robot.iter("link"):
        for kind in ("visual", "collision"):
            for shape in link.findall(kind):
                if (mesh := shape.find("geometry/mesh")) is None:
                    continue
                given = mesh.get("filename", "")
                found = find_mesh(given, path, meshdir)
                if found is not None and found.suffix.lower() in MESHES:
                    mesh.set("filename", str(found))
                elif kind == "visual":
                    link.remove(shape)
                    left_out.append(Path(given).name)
                else:
                    why = "is not there" if found is None else f"is none of {', '.join(MESHES)}"
                    raise ValueError(
                        f"link {link.get('name')!r}: its collision mesh {given} {why}; bring it, or write a box or cylinder"
                    )
    if left_out:
        _tell_left_out(path, ", ".join(dict.fromkeys(left_out)))
    return ElementTree.tostring(robot, encoding="unicode")


@functools.cache
def _tell_left_out(path: Path, names: str) -> None:
    """Warn of visuals without their meshes; once, however often the file is read."""
    log.warning("%s: visuals are left out, whose meshes are missing or no STL, OBJ or MSH: %s", path, names)


def _without_empty_root(robot: ElementTree.Element) -> None:
    """Take away a root link that has neither mass nor shape and holds the next one fast, as `base_footprint` does."""
    while True:
        children = {child.get("link") for child in robot.findall("joint/child")}
        roots = [link for link in robot.findall("link") if link.get("name") not in children]
        if len(roots) != 1 or roots[0].get("name") == "world" or any(roots[0].find(part) is not None for part in _PARTS):
            return
        held = [joint for joint in robot.findall("joint") if _end(joint, "parent") == roots[0].get("name")]
        if len(held) != 1 or held[0].get("type") != "fixed":
            return
        robot.remove(roots[0])
        robot.remove(held[0])


_PARTS = ("inertial", "visual", "collision")


def _end(joint: ElementTree.Element, which: str) -> str | None:
    found = joint.find(which)
    return None if found is None else found.get("link")


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
