"""A URDF as MuJoCo reads it, with what a URDF has no words for, and as the ROS world writes it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

if TYPE_CHECKING:
    import mujoco

log = logging.getLogger("embodied_rl")

#: Formats of meshes that MuJoCo reads.
MESHES = (".stl", ".obj", ".msh")
#: All that a robot's body is made of in a URDF; the rest is for other programs.
_OWN = ("link", "joint", "material", "mujoco")
#: What a link may have that makes it more than a frame.
_PARTS = ("inertial", "visual", "collision")
_SCHEME = re.compile(r"^(?:package|model)://(?P<package>[^/]*)/|^file://")
#: What xacro would replace: its own elements, `$(find NAME)` and `${NUMBER}`.
_XACRO = re.compile(r"<xacro:|\$\(\w+ |\$\{")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
#: What MuJoCo passes over before a file's declaration.
_BEFORE = re.compile(r"\A\ufeff?(\s*)<\?xml[^>]*\?>")


def is_urdf(path: Path) -> bool:
    """Say whether a file is a URDF, or xacro that makes one: by its name, or by its first element.

    Raises:
        ValueError: it cannot be read.
    """
    if path.suffix.lower() in (".urdf", ".xacro"):
        return True
    try:
        with path.open("rb") as file:
            return next((element.tag == "robot" for _, element in ElementTree.iterparse(file, ("start",))), False)
    except ElementTree.ParseError:  # MuJoCo says it better
        return False
    except OSError as error:
        raise ValueError(error.strerror) from error


def parse(text: str) -> Element:
    """Parse XML as MuJoCo does, which minds neither blank lines before the declaration nor what follows a zero byte.

    Raises:
        ElementTree.ParseError: it is none.
    """
    return ElementTree.fromstring(_BEFORE.sub(r"\1", text.partition("\0")[0]).removeprefix("\ufeff"))


def read_urdf(path: Path, base: str) -> mujoco.MjSpec:
    """Read the robot of a URDF, free to move unless its first link is `world`.

    Visuals (group 2) and links behind fixed joints are kept. A URDF names neither sites nor geoms: each link gets a
    site with its name at its origin, its collision geoms (group 3, deaf to each other) are called `LINK`, `LINK_1`,
    ..., and the first link gets a free joint. Links above `base` that only hold the next one (`base_footprint`) are left
    out, and so are visuals that cannot be read, with one warning for the file.

    Raises:
        ValueError: the file is no URDF that MuJoCo can read, or xacro still.
    """
    text, root, files = _prepared(path, base, path.stat().st_mtime_ns)
    spec = _spec(text, files)
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
    body = spec.body(root)
    if body is not None and root != "world" and not body.joints:
        body.add_freejoint(name=root)
    return spec


def refuse_xacro(path: Path, text: str) -> None:
    """Refuse what makes a URDF and is none yet.

    Raises:
        ValueError: it is xacro; one line with the command that expands it.
    """
    if path.suffix.lower() == ".xacro" or _XACRO.search(_COMMENT.sub("", text)):
        stem = path.name.removesuffix(".xacro").removesuffix(".urdf")
        made = f"{stem}.urdf" if path.suffix.lower() == ".xacro" else f"{stem}_expanded.urdf"
        raise ValueError(f"is xacro, which makes a URDF; expand it first: ros2 run xacro xacro {path} -o {made}")


def find_mesh(given: str, path: Path, meshdir: str = "") -> Path | None:
    """Find the file that a URDF at `path` means by a mesh's name; None where it is nowhere.

    package://NAME/meshes/foot.stl lies in a folder NAME above the file, or beside one above, or in the robot's own folder, or in
    the one above, where urdf/ lies beside meshes/.
    """
    return next((place for place in _places(given, path.resolve().parent, meshdir) if place.is_file()), None)


def _places(given: str, folder: Path, meshdir: str) -> Iterator[Path]:
    """Say where a mesh's file may lie, the likeliest first."""
    scheme = _SCHEME.match(given)
    name, package = (given[scheme.end() :], scheme["package"]) if scheme else (given, None)
    if package:
        for above in (folder, *folder.parents):
            if above.name == package:
                yield above / name
            yield above / package / name
    yield from (above / name for above in (folder / meshdir, folder, *list(folder.parents)[:2]))


@lru_cache(maxsize=16)  # a scene reads its robot several times; what is left out is said once
def _prepared(path: Path, base: str, changed: int) -> tuple[str, str, dict[str, str]]:
    """Make the text that MuJoCo is given of a file that changed then.

    Returns:
        The text, the name of the first link, and the files of meshes that stand in the text by another name.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        refuse_xacro(path, text)
        robot = parse(text)
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    for element in [one for one in robot if one.tag not in _OWN]:
        robot.remove(element)
    root = _without_empty_roots(robot, base)
    compiler = robot.find("mujoco/compiler")
    if compiler is None:
        compiler = ElementTree.SubElement(ElementTree.SubElement(robot, "mujoco"), "compiler")
    compiler.attrib.update(discardvisual="false", fusestatic="false", strippath="false")
    meshdir = compiler.attrib.pop("meshdir", "")
    left_out: list[str] = []
    files: dict[str, Path] = {}
    for link in robot.findall("link"):
        for part in (*link.findall("visual"), *link.findall("collision")):
            if (mesh := part.find("geometry/mesh")) is None:
                continue
            given = mesh.get("filename", "")
            found = find_mesh(given, path, meshdir)
            why = "is not there" if found is None else _fault(found, found.stat().st_mtime_ns)
            if found is not None and not why:
                mesh.set("filename", _named(found, files))
            elif part.tag == "collision":
                raise ValueError(
                    f"link {link.get('name')!r}: its collision mesh {given} {why}; bring it, or write a box or cylinder"
                )
            else:
                link.remove(part)
                left_out.append(f"{Path(given).name} {why}")
    if left_out:
        log.warning("%s: visuals are left out, which changes looks alone: %s", path, "; ".join(dict.fromkeys(left_out)))
    aliases = {str(file.with_stem(stem)): str(file) for stem, file in files.items() if stem != file.stem}
    return ElementTree.tostring(robot, encoding="unicode"), root, aliases


def _named(file: Path, files: dict[str, Path]) -> str:
    """Name a mesh's file by a stem of its own: MuJoCo takes files of one stem, in whichever folders, for one mesh."""
    stem, count = file.stem, 0
    while files.setdefault(stem, file) != file:
        count += 1
        stem = f"{file.stem}_{count}"
    return str(file.with_stem(stem))


@lru_cache(maxsize=256)
def _fault(file: Path, changed: int) -> str:
    """Say why MuJoCo cannot read a mesh that changed then; nothing if it can."""
    import mujoco

    if file.suffix.lower() not in MESHES:
        return f"is none of {', '.join(MESHES)}"
    spec = mujoco.MjSpec()
    spec.add_mesh(name="mesh", file=str(file))
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname="mesh")
    try:
        spec.compile()
    except ValueError as error:
        return f"cannot be read: {' '.join(str(error).splitlines()[0].split())}"
    return ""


def _without_empty_roots(robot: Element, base: str) -> str:
    """Take away links above the base that only hold the next one, fixed or floating; the name of the first link that is left."""
    while True:
        joints = robot.findall("joint")
        below = {_end(joint, "child") for joint in joints}
        first = [link for link in robot.findall("link") if link.get("name") not in below]
        if len(first) != 1:  # MuJoCo says what is wrong
            return base
        name = first[0].get("name", "")
        held = [joint for joint in joints if _end(joint, "parent") == name]
        kind = held[0].get("type") if len(held) == 1 else None
        more = any(first[0].find(part) is not None for part in _PARTS) or kind != "fixed"
        if kind != "floating" and (name in (base, "world") or more):
            return name
        robot.remove(first[0])
        robot.remove(held[0])


def _end(joint: Element, which: str) -> str:
    found = joint.find(which)
    return "" if found is None else found.get("link", "")


def first_link(path: Path, base: str) -> str:
    """Name the link of a URDF that no other holds, those that only hold the next one aside."""
    return _prepared(path, base, path.stat().st_mtime_ns)[1]


def as_mujoco_reads(path: Path, base: str, *, whole: bool) -> mujoco.MjSpec:
    """Read a URDF as MuJoCo alone does, with the meshes where ours are.

    Args:
        path: the file.
        base: the robot's.
        whole: keep visuals and links behind fixed joints, as ours does; else as the file itself says.

    Raises:
        ValueError: as of `read_urdf`.
    """
    text, _, files = _prepared(path, base, path.stat().st_mtime_ns)
    spec = _spec(text, files)
    if not whole:
        given = parse(path.read_text(encoding="utf-8", errors="replace")).find("mujoco/compiler")
        told = {} if given is None else given.attrib
        spec.compiler.discardvisual = told.get("discardvisual", "true") == "true"
        spec.compiler.fusestatic = told.get("fusestatic", "true") == "true"
    return spec


def _spec(text: str, files: dict[str, str]) -> mujoco.MjSpec:
    import mujoco

    spec = mujoco.MjSpec.from_string(text)
    for mesh in spec.meshes:
        mesh.file = files.get(mesh.file, mesh.file)
    return spec
