"""A URDF as MuJoCo reads it, with what a URDF has no words for, and as the ROS world writes it."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, count
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
_ENCODING = re.compile(rb"""(?:\xef\xbb\xbf)?\s*<\?xml[^>]*?\bencoding=["']([\w.-]+)""")
#: Types of joints that have one position, which another joint may follow.
_OF_ONE = ("revolute", "continuous", "prismatic")
#: What MuJoCo passes over before a file's declaration.
_BEFORE = re.compile(r"\A(\s*)<\?xml[^>]*\?>")


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


def read_urdf(path: Path, base: str) -> mujoco.MjSpec:
    """Read the robot of a URDF, free to move unless its first link is `world`.

    Visuals (group 2) and links behind fixed joints are kept. A URDF names neither sites nor geoms: each link gets a
    site with its name at its origin, its collision geoms (group 3, deaf to each other) are called `LINK`, `LINK_1`,
    ..., those names aside that another link has, and the first link gets a free joint. Links above `base` that only hold
    the next one (`base_footprint`) are left out, and so are visuals that cannot be read, with one warning for the file.

    Raises:
        ValueError: the file is no URDF that MuJoCo can read, or xacro still.
    """
    text, root, files = _prepared(path, base, path.stat().st_mtime_ns)
    spec = _spec(text, files)
    links, joints = {body.name for body in spec.bodies}, {joint.name for joint in spec.joints}
    for body in spec.bodies[1:]:
        body.add_site(name=body.name)
        names = _numbered(body.name, links - {body.name})
        for geom in body.geoms:
            if not body.explicitinertial:
                geom.density = 0.0  # a link without <inertial> has no mass
            if not geom.contype:
                geom.group = 2
                continue
            geom.name = next(names)
            geom.group, geom.contype, geom.conaffinity = 3, 0, 1
    body = spec.body(root)
    if body is not None and root != "world" and not body.joints:
        body.add_freejoint(name=next(_numbered(root, joints)))
    return spec


def _numbered(name: str, taken: set[str]) -> Iterator[str]:
    """Give `NAME`, `NAME_1`, ..., without those that are taken."""
    return (one for one in chain((name,), (f"{name}_{n}" for n in count(1))) if one not in taken)


def parse(path: Path) -> Element:
    """Read the elements of a URDF, of whatever encoding; names in its default namespace are bare.

    As MuJoCo does, it minds neither blank lines before the declaration nor what follows a zero byte.

    Raises:
        ValueError: it is no XML, or xacro still.
    """
    try:
        text = _text(path)
        refuse_xacro(path, text)
        root = ElementTree.fromstring(_BEFORE.sub(r"\1", text.partition("\0")[0]))
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    if root.tag.startswith("{"):
        space = root.tag[: root.tag.index("}") + 1]
        for element in root.iter():
            element.tag = element.tag.removeprefix(space)
    return root


def _text(path: Path) -> str:
    """Decode a file as its first bytes say; what says nothing and is no UTF-8 is Latin-1."""
    data = path.read_bytes()
    declared = _ENCODING.match(data)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    try:
        return data.decode(declared[1].decode() if declared else "utf-8-sig").removeprefix("\ufeff")
    except (UnicodeDecodeError, LookupError):
        return data.decode("latin-1")


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
    robot = parse(path)
    _check(robot)
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


def _check(robot: Element) -> None:
    """Refuse what MuJoCo reads as something else: a second root, a limit turned round, a joint that follows none."""
    joints = robot.findall("joint")
    for kind in ("link", "joint"):
        names = [one.get("name", "") for one in robot.findall(kind)]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ValueError(f"{names.count(twice[0])} {kind}s are called {twice[0]!r}; give each a name of its own")
    below = {_end(joint, "child") for joint in joints}
    roots = [link.get("name", "") for link in robot.findall("link") if link.get("name") not in below]
    if len(roots) > 1:
        raise ValueError(f"{len(roots)} links are no joint's child ({', '.join(roots)}); a URDF has one root")
    for link in robot.findall("link"):
        mass = link.find("inertial/mass")
        if mass is not None and _number(mass.get("value", "")) < 0.0:
            raise ValueError(f"link {link.get('name')!r}: its mass is {mass.get('value')}; allowed: 0 or more")
    for joint in joints:
        limit = joint.find("limit")
        ends = {} if limit is None else {key: limit.get(key, "0") for key in ("lower", "upper")}
        if ends and joint.get("type") in _OF_ONE and _number(ends["lower"]) > _number(ends["upper"]):
            raise ValueError(
                f"joint {joint.get('name')!r}: its limit is from {ends['lower']} to {ends['upper']}; the lower first"
            )
    followed = [joint.get("name") for joint in joints if joint.get("type") in _OF_ONE]
    for joint in joints:
        mimic = joint.find("mimic")
        if mimic is not None and mimic.get("joint") not in followed:
            others = f"no {', '.join(_OF_ONE[:-1])} or {_OF_ONE[-1]} joint of the file is called so"
            raise ValueError(f"joint {joint.get('name')!r}: it mimics {mimic.get('joint')!r}, and {others}")


def _number(text: str) -> float:
    """Read a number; of what is none MuJoCo says so."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _named(file: Path, files: dict[str, Path]) -> str:
    """Name a mesh's file by a stem of its own: MuJoCo takes files of one stem, in whichever folders, for one mesh."""
    stems = (file.stem, *(f"{file.stem}_{n}" for n in range(1, len(files) + 1)))
    return str(file.with_stem(next(stem for stem in stems if files.setdefault(stem, file) == file)))


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
        if not first:  # MuJoCo says what is wrong
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
        given = parse(path).find("mujoco/compiler")
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
