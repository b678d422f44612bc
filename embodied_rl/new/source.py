"""A model file of others, URDF or MJCF, read as a robot alone and copied with the meshes that it needs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import mujoco
import numpy as np

from embodied_rl.errors import UserError
from embodied_rl.physics.actuators import torque_range
from embodied_rl.robot.weld import obstacles
from embodied_rl.urdf import MESHES, find_mesh, first_link, parse, read_urdf


@dataclass
class Source:
    """A robot as its file has it: one body with a free joint, and what hangs on it."""

    name: str
    path: Path
    """The copy."""
    spec: mujoco.MjSpec
    base: str
    urdf: bool
    effort: dict[str, float] = field(default_factory=dict)
    """Largest torque of each joint that the file gives one [N m]."""
    velocity: dict[str, float] = field(default_factory=dict)
    """Largest speed, likewise [rad/s]."""
    driven: set[str] = field(default_factory=set)
    """Joints that the file's actuators drive; all of them where it has no actuators."""
    passive: list[str] = field(default_factory=list)
    """Joints that no actuator drives, and that constraints or tendons of the file move."""
    poses: dict[str, dict[str, float]] = field(default_factory=dict)
    """The file's keyframes: positions by joint [rad]."""
    lost: set[str] = field(default_factory=set)
    """Bodies whose collision meshes are missing."""
    notes: list[str] = field(default_factory=list)
    """What was left out, a line each."""

    def welded(self, joints: Iterable[str]) -> list[str]:
        """Choose those joints that nothing drives and nothing else needs."""
        return [name for name in joints if name not in self.driven and name not in self.passive]

    def save(self) -> None:
        """Write the MJCF as it is now; a URDF is kept as it was copied."""
        if not self.urdf:
            self.spec.compile()
            meshes = str(self.path.parent / "meshes") + "/"
            self.path.write_text(self.spec.to_xml().replace(f'file="{meshes}', 'file="'), encoding="utf-8")

    def mark(self, link: str, place: np.ndarray) -> str:
        """Write a link of no mass into the copied URDF at a place of another, which marks it by a site; its name."""
        root, name = ElementTree.fromstring(self.path.read_text(encoding="utf-8")), f"{link}_end"
        while any(one.get("name") == name for one in root):
            name += "_"
        ElementTree.SubElement(root, "link", name=name)
        joint = ElementTree.SubElement(root, "joint", name=f"{name}_fixed", type="fixed")
        ElementTree.SubElement(joint, "parent", link=link)
        ElementTree.SubElement(joint, "child", link=name)
        ElementTree.SubElement(joint, "origin", xyz=" ".join(f"{one:.6g}" for one in place), rpy="0 0 0")
        self.path.write_text(ElementTree.tostring(root, encoding="unicode"), encoding="utf-8")
        return name


def refuse_no_file(file: Path) -> None:
    """Refuse what is no file.

    Raises:
        UserError: a folder, or nothing; one line.
    """
    if file.is_dir():
        found = sorted(one.name for one in file.iterdir() if one.suffix.lower() in (".xml", ".urdf"))
        raise UserError(f"{file}: a folder; name an MJCF (.xml) or a URDF (.urdf)" + (f": {', '.join(found)}" if found else ""))
    if not file.is_file():
        raise UserError(f"{file}: no such file; allowed: an MJCF (.xml) or a URDF (.urdf)")


def read_source(file: Path, folder: Path) -> Source:
    """Read a model file and copy it into a folder.

    Raises:
        UserError: it is no robot that could work; one line.
    """
    try:
        root = parse(file)
    except ValueError as error:
        xml = isinstance(error.__cause__, ElementTree.ParseError)
        raise UserError(f"{file}: {f'is no XML ({error}); allowed: an MJCF or a URDF' if xml else error}") from None
    name = re.sub(r"\W+", "_", file.stem).strip("_")
    if root.tag not in ("robot", "mujoco"):
        raise UserError(f"{file}: its root is <{root.tag}>; allowed: <mujoco> of an MJCF and <robot> of a URDF")
    try:
        source = _urdf(file, root, folder, name) if root.tag == "robot" else _mjcf(file, root, folder, name)
        model = source.spec.compile()
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error
    kinds = {model.joint(index).name: int(model.jnt_type[index]) for index in range(model.njnt)}
    moving = [name for name, kind in kinds.items() if kind != mujoco.mjtJoint.mjJNT_FREE]
    if ball := [name for name in moving if kinds[name] == mujoco.mjtJoint.mjJNT_BALL]:
        raise UserError(f"{file}: {ball[0]!r} is a ball joint; allowed are hinge and slide: write three hinges")
    if not moving or not source.driven:
        why = "no joint moves" if not moving else "no actuator drives a joint"
        raise UserError(f"{file}: no actuated joints: {why}; a robot needs one that a motor can turn")
    free = [name for name in moving if name not in source.driven]
    source.passive = list(dict.fromkeys(name for name, _ in obstacles(source.spec, free)))
    return source


def _urdf(file: Path, root: ElementTree.Element, folder: Path, name: str) -> Source:
    links = [link.get("name", "") for link in root.iter("link")]
    children = {child.get("link") for child in root.iter("child")}
    bases = [link for link in links if link not in children]
    if len(bases) != 1:
        raise UserError(f"{file}: {len(bases)} links are no joint's child ({', '.join(bases) or 'none'}); a URDF has one root")
    path = folder / f"{name}.urdf"
    notes, lost = _copy_urdf_meshes(file, root, folder)
    notes += _loosen(file, root, bases[0])
    if empty := _drop_empty_shapes(root):
        notes.append(f"left out: shapes of no size of {', '.join(empty)}")
    if mended := _mend_inertias(root):
        notes.append(f"mended: the inertias of {', '.join(mended)}, which no body can have, are spheres'")
    path.write_text(ElementTree.tostring(root, encoding="unicode"), encoding="utf-8")
    base = first_link(path, "")
    source = Source(name, path, read_urdf(path, base), base, True, notes=notes, lost=lost)
    for joint in root.findall("joint"):
        if joint.get("type") not in ("revolute", "continuous", "prismatic"):
            continue
        joint_name, limit = joint.get("name", ""), joint.find("limit")
        source.driven.add(joint_name)
        for key, known in (("effort", source.effort), ("velocity", source.velocity)):
            if limit is not None and (value := float(limit.get(key, 0.0))) > 0.0:
                known[joint_name] = value
    return source


def _loosen(file: Path, root: ElementTree.Element, first: str) -> list[str]:
    """Take the link `world` away that holds a robot fast, as if it were mounted; what to say of it."""
    held = [
        joint for joint in root.findall("joint") if (parent := joint.find("parent")) is not None and parent.get("link") == first
    ]
    if first != "world" or not held or held[0].get("type") == "floating":
        return []
    if len(held) != 1 or held[0].get("type") != "fixed":
        names = ", ".join(repr(joint.get("name")) for joint in held)
        raise UserError(f"{file}: 'world' holds {names}; a robot that walks is one link, fixed to it or free of it")
    for element in [held[0], *(link for link in root.findall("link") if link.get("name") == first)]:
        root.remove(element)
    return ["base: free to move; the file holds it to its world"]


def _drop_empty_shapes(root: ElementTree.Element) -> list[str]:
    """Take shapes out that have no size, which MuJoCo refuses; the links."""
    dropped = {}
    for link in root.iter("link"):
        for kind in ("visual", "collision"):
            for shape in link.findall(kind):
                sizes = [
                    float(one)
                    for solid in shape.findall("geometry/*")
                    for key in ("radius", "length", "size")
                    for one in solid.get(key, "").split()
                ]
                if sizes and min(sizes) <= 0.0:
                    link.remove(shape)
                    dropped[link.get("name", "")] = None
    return list(dropped)


def _mend_inertias(root: ElementTree.Element) -> list[str]:
    """Replace inertias that MuJoCo refuses, with no positive eigenvalues or A + B < C, by those of spheres; the links.

    A sphere of their mean, or of the link's mass and as dense as water where that is none.
    """
    mended = []
    for link in root.iter("link"):
        if (inertia := link.find("inertial/inertia")) is None:
            continue
        xx, yy, zz, xy, xz, yz = (float(inertia.get(key, 0.0)) for key in ("ixx", "iyy", "izz", "ixy", "ixz", "iyz"))
        small, middle, large = np.linalg.eigvalsh([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        mass = link.find("inertial/mass")
        heavy = float(mass.get("value", 0.0)) if mass is not None else 0.0
        mean = (xx + yy + zz) / 3.0
        if mean <= 1e-9 * heavy:  # what is left of rounding
            mean = 0.4 * heavy * (3.0 * heavy / (4.0 * np.pi * 1000.0)) ** (2.0 / 3.0)
        if (small <= 0.0 or small + middle < large) and mean > 0.0:
            inertia.attrib.update({key: f"{mean if key[1] == key[2] else 0.0:.9g}" for key in inertia.attrib})
            mended.append(link.get("name", ""))
    return mended


def _copy_urdf_meshes(file: Path, root: ElementTree.Element, folder: Path) -> tuple[list[str], set[str]]:
    """Copy what is there and what MuJoCo can read; take the rest out of the links.

    Returns:
        What was left out, a line each, and the links that lost a collision mesh.
    """
    compiler = root.find("mujoco/compiler")
    meshdir = compiler.attrib.pop("meshdir", "") if compiler is not None else ""
    lost: dict[str, list[str]] = {"visual": [], "collision": []}
    copied: dict[Path, str] = {}
    deaf: set[str] = set()
    for link in root.iter("link"):
        for kind in lost:
            for shape in link.findall(kind):
                mesh = shape.find("geometry/mesh")
                if mesh is None:
                    continue
                given = mesh.get("filename", "")
                found = find_mesh(given, file, meshdir)
                if found is None or found.suffix.lower() not in MESHES:
                    lost[kind].append(Path(given).name)
                    link.remove(shape)
                    deaf |= {link.get("name", "")} if kind == "collision" else set()
                else:
                    mesh.set("filename", _copy_mesh(found, folder, copied))
    why = "missing, or no STL, OBJ or MSH"
    return [f"left out: {len(set(names))} {kind} meshes ({why})" for kind, names in lost.items() if names], deaf


def _copy_mesh(found: Path, folder: Path, copied: dict[Path, str]) -> str:
    """Copy a mesh once, under a name of its own; its path in the folder."""
    if found not in copied:
        taken = {Path(one).name for one in copied.values()}
        name = found.name if found.name not in taken else f"{len(copied)}_{found.name}"
        copied[found] = f"meshes/{name}"
        (folder / "meshes").mkdir(exist_ok=True)
        shutil.copyfile(found, folder / "meshes" / name)
    return copied[found]


def _mjcf(file: Path, root: ElementTree.Element, folder: Path, name: str) -> Source:
    spec = mujoco.MjSpec.from_file(str(file))
    roots = {body: sum(len(one.joints) for one in (body, *body.find_all("body"))) for body in spec.worldbody.bodies}
    if not roots:
        raise UserError(f"{file}: no actuated joints: the file has no bodies")
    base = max(roots, key=lambda body: roots[body])
    own = {joint.name: joint.type for joint in base.joints}
    free = [kind == mujoco.mjtJoint.mjJNT_FREE for kind in own.values()]
    if own and free != [True]:
        names = ", ".join(map(repr, own))
        raise UserError(f"{file}: {base.name!r} is held to the world by {names}; a robot that walks has a free joint alone there")
    if not base.name:
        taken = {body.name for body in spec.bodies}
        base.name = next(one for one in ("base", *(f"base_{n}" for n in range(len(taken)))) if one not in taken)
    notes = _only_robot(spec, base)
    if not own:
        base.add_freejoint(name="root")
        notes.append(f"base: a free joint was added to {base.name!r}")
    # a base's own axes point ahead and up, whichever way the file has turned it
    here = spec.compile().body(base.name).pos
    base.set_frame(spec.worldbody.add_frame())
    base.pos, base.quat, base.alt.type = here, (1.0, 0.0, 0.0, 0.0), mujoco.mjtOrientation.mjORIENTATION_QUAT
    parts = [file.parent / model.get("file", "") for model in root.iter("model")]
    told, lost = _copy_mjcf_meshes(spec, [file, *parts], folder)
    notes += told
    base.joints[0].name = base.joints[0].name or "root"
    for number, body in enumerate(base.find_all("body")):
        body.name = body.name or f"body_{number}"
        for index, joint in enumerate(body.joints):
            joint.name = joint.name or f"{body.name}_joint{index or ''}"
    source = Source(name, folder / f"{name}.xml", spec, base.name, False, notes=notes, lost=lost)
    for sensor in list(spec.sensors):
        spec.delete(sensor)
    if pairs := list(spec.pairs):
        notes.append(f"left out: {len(pairs)} contact pairs; what they name of the robot may touch the ground")
    for pair in pairs:
        for geom in [geom for geom in spec.geoms if geom.name in (pair.geomname1, pair.geomname2)]:
            geom.conaffinity = 1
        spec.delete(pair)
    _read_actuators(spec, source)
    for element in [*spec.actuators, *spec.keys]:
        spec.delete(element)
    return source


def _only_robot(spec: mujoco.MjSpec, base: mujoco.MjsBody) -> list[str]:
    """Take the world of the file away: its ground, its lights, and other bodies."""
    others = [body.name or "a body without a name" for body in spec.worldbody.bodies if body.name != base.name]
    for element in [body for body in spec.worldbody.bodies if body.name != base.name]:
        spec.delete(element)
    world = spec.worldbody
    for element in [*world.geoms, *world.sites, *world.lights, *world.cameras]:
        spec.delete(element)
    for element in [*spec.hfields, *spec.skins]:
        spec.delete(element)
    return [f"left out: {', '.join(others)}, which {'is' if len(others) == 1 else 'are'} not the robot"] if others else []


def _copy_mjcf_meshes(spec: mujoco.MjSpec, files: list[Path], folder: Path) -> tuple[list[str], set[str]]:
    """Copy what is there; take what is missing out of the bodies, and pictures out of materials.

    Args:
        spec: the robot.
        files: its own, and those of the models that it attaches, beside which their meshes lie.
        folder: where the meshes go.

    Returns:
        What was left out, a line each, and the bodies that lost a collision mesh.
    """
    for material in spec.materials:
        material.textures = [""] * len(material.textures)
    for texture in list(spec.textures):
        spec.delete(texture)
    lost: list[str] = []
    copied: dict[Path, str] = {}
    deaf: set[str] = set()
    for mesh in [mesh for mesh in spec.meshes if mesh.file]:
        given = Path(mesh.file).name if spec.strippath else mesh.file
        places = [(file.parent / mesh.compiler.meshdir / given).resolve() for file in files]
        found = next((place for place in places if place.is_file()), None)
        name = mesh.name or Path(mesh.file).stem
        if found is not None:
            # in whole: MuJoCo seeks those of a model that is attached beside that one
            mesh.name, mesh.file = name, str(folder / _copy_mesh(found, folder, copied))
            continue
        for geom in [geom for geom in spec.geoms if geom.meshname == name]:
            if not geom.parent.explicitinertial:
                where = f"{geom.parent.name!r} gets its mass from it"
                raise UserError(f"{files[0]}: the mesh {places[0]} is missing, and {where}; bring it, or write <inertial>")
            deaf |= {geom.parent.name} if geom.contype or geom.conaffinity else set()
            spec.delete(geom)
        spec.delete(mesh)
        lost.append(name)
    spec.meshdir, spec.modelfiledir, spec.strippath = "meshes", str(folder), False
    return [f"left out: {len(lost)} meshes that are missing"] if lost else [], deaf


def _read_actuators(spec: mujoco.MjSpec, source: Source) -> None:
    """Find what drives each joint and how strongly, and the keyframes."""
    model = spec.compile()
    names = [model.joint(index).name for index in range(model.njnt)]
    moving = {one for one in names if model.joint(one).type[0] != mujoco.mjtJoint.mjJNT_FREE}
    source.driven |= set() if model.nu else moving
    for name in names:
        low, high = torque_range(model, name)
        if np.isfinite(high):
            source.effort[name] = max(-low, high)
    for index in range(model.nu):
        kind, target = int(model.actuator_trntype[index]), int(model.actuator_trnid[index, 0])
        if kind == mujoco.mjtTrn.mjTRN_TENDON:
            wraps = range(model.tendon_adr[target], model.tendon_adr[target] + model.tendon_num[target])
            source.driven |= {
                names[model.wrap_objid[wrap]] for wrap in wraps if model.wrap_type[wrap] == mujoco.mjtWrap.mjWRAP_JOINT
            }
        if kind in (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT):
            source.driven.add(names[target])
    for index in range(model.nkey):
        key = model.key(index)
        source.poses[key.name or f"key {index}"] = {
            name: float(key.qpos[model.jnt_qposadr[model.joint(name).id]]) for name in names if name in moving
        }
