"""A compiled model as a URDF, for simulators that read no MJCF.

A link for each body that moves, with all that is fixed to it; a joint for each but the base.  What a URDF has no words for is not
in it: drives, armature, friction, what collides with what.  What it would say wrong is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import mujoco
import numpy as np
from numpy.typing import NDArray

from embodied_rl.errors import UserError
from embodied_rl.physics.actuators import motors_of, torque_range

Array = NDArray[np.float64]

_HINGE, _SLIDE, _FREE = (int(getattr(mujoco.mjtJoint, f"mjJNT_{name}")) for name in ("HINGE", "SLIDE", "FREE"))
#: A URDF's limit has a velocity, and MuJoCo's joints have none: more than any motor's [rad/s or m/s].
_FASTEST = 100.0
#: Where a slide without limits ends [m].
_FAR = 1e6
#: Kinds of geoms that have a word in a URDF, or are made of what has one.
_SHAPES = {
    int(getattr(mujoco.mjtGeom, f"mjGEOM_{name}")): name.lower() for name in ("SPHERE", "CAPSULE", "CYLINDER", "BOX", "MESH")
}
#: What a part that is measured on its own takes of the mass of its body, at most [1] and [kg].
_SHARE, _MOST = 0.05, 0.05


@dataclass(frozen=True)
class Link:
    """A link, with the axes of its body."""

    name: str
    body: int
    """What moves as it does; other bodies may be fixed to it."""
    parent: int
    """The link it hangs on, -1 for the base."""
    joint: int
    """Its joint in the model, -1 where it floats or is fixed to its parent."""
    place: tuple[float, float, float]
    """Where it stands in its body [m]."""
    geoms: tuple[int, ...]
    """What of it collides."""


class Linkage:
    """The links of a model's robot.

    Args:
        model: compiled; one robot that is free to move.
        measured: sets of geoms whose contacts are to be told from others'. One that is not all that collides of its body gets a
            link of its own, fixed to the rest of the body and a small part of its mass.

    Raises:
        UserError: the model has what no URDF can say; a line for the first.
    """

    def __init__(self, model: mujoco.MjModel, measured: Iterable[Collection[int]] = ()) -> None:
        self.model = model
        moving, measured = _moving(model), list(measured)
        data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        places, turns = data.xpos, data.xmat.reshape(-1, 3, 3)
        root = model.body_weldid
        # bodies in the frame of the one they are fixed to
        self._place = np.einsum("bji,bj->bi", turns[root], places - places[root])
        self._turn = np.einsum("bji,bjk->bik", turns[root], turns)
        colliding = np.flatnonzero(collides(model)).tolist()
        for geom in colliding:
            if root[model.geom_bodyid[geom]] and int(model.geom_type[geom]) not in _SHAPES:
                given = mujoco.mjtGeom(int(model.geom_type[geom])).name.removeprefix("mjGEOM_").lower()
                raise UserError(
                    f"geom {name_of(model, 'geom', geom)!r} is of the kind {given}, which a URDF has no word for; it has "
                    f"{', '.join(_SHAPES.values())}"
                )
        of = {body: {geom for geom in colliding if root[model.geom_bodyid[geom]] == body} for body in moving}
        parts = {body: _parts_of(geoms, measured) for body, geoms in of.items()}
        links: list[Link] = []
        index = {body: number for number, body in enumerate(moving)}
        for body in moving:
            joint = int(model.body_jntadr[body])
            floats = model.jnt_type[joint] == _FREE
            parent = -1 if floats else index[int(root[model.body_parentid[body]])]
            place = np.zeros(3) if floats else model.jnt_pos[joint]
            rest = of[body].difference(*parts[body])
            links.append(
                Link(name_of(model, "body", body), body, parent, -1 if floats else joint, _tuple(place), tuple(sorted(rest)))
            )
        for body in moving:
            for geoms in parts[body]:
                first = geoms[0]
                name, taken = name_of(model, "geom", first), {link.name for link in links}
                name = name if name not in taken else f"{name}_geom_{first}"
                links.append(Link(name, body, index[body], -1, _tuple(self._in_root(first)[0]), geoms))
        self.links = tuple(links)
        """The base first, each after its parent."""
        self._parts = self._small_parts(len(moving))

    def inertials(self, mass: Array, ipos: Array, inertia: Array) -> tuple[Array, Array, Array]:
        """Find what links weigh, of robots whose bodies do.

        Args:
            mass: `body_mass` of each robot [kg], (N, nbody).
            ipos: `body_ipos` [m], (N, nbody, 3).
            inertia: `body_inertia`, about the axes that `body_iquat` of the model has [kg m^2], (N, nbody, 3).

        Returns:
            Masses (N, L), centres in the links' frames (N, L, 3), and inertias about them, along their axes (N, L, 3, 3).
        """
        model, count = self.model, len(self.links)
        axes = self._turn @ np.array([_matrix(quat) for quat in model.body_iquat])
        about = np.einsum("bij,nbj,bkj->nbik", axes, inertia, axes)
        centre = self._place + np.einsum("bij,nbj->nbi", self._turn, ipos)
        total, first, second = np.zeros((len(mass), count)), np.zeros((len(mass), count, 3)), np.zeros((len(mass), count, 3, 3))

        def add(link: int, kilos: Array, where: Array, tensor: Array) -> None:
            total[:, link] += kilos
            first[:, link] += kilos[:, None] * where
            second[:, link] += tensor + kilos[:, None, None] * _steiner(where)

        own = {link.body: number for number, link in reversed(list(enumerate(self.links)))}
        for body in range(1, model.nbody):
            if (root := int(model.body_weldid[body])) != 0:
                place = np.array(self.links[own[root]].place)
                add(own[root], mass[:, body], centre[:, body] - place, about[:, body])
        for number, (kilos, tensor) in self._parts.items():
            link = self.links[number]
            away = np.subtract(link.place, self.links[link.parent].place)[None]
            add(number, np.full(len(mass), kilos), np.zeros((1, 3)), np.eye(3) * tensor)
            add(link.parent, np.full(len(mass), -kilos), away, np.eye(3) * -tensor)
        middle = first / np.maximum(total, np.finfo(float).tiny)[..., None]
        return total, middle, second - total[..., None, None] * _steiner(middle)

    def _small_parts(self, moving: int) -> dict[int, tuple[float, float]]:
        """Find a mass [kg] and inertia [kg m^2] for each measured part that leave the rest of its body possible."""
        model = self.model
        self._parts: dict[int, tuple[float, float]] = {}
        mass, ipos, inertia = model.body_mass[None], model.body_ipos[None], model.body_inertia[None]
        whole = self.inertials(mass, ipos, inertia)[0][0]
        for number in range(moving, len(self.links)):
            link = self.links[number]
            kilos = min(_SHARE * whole[link.parent], _MOST)
            for _ in range(12):
                self._parts[number] = kilos, 0.4 * kilos * float(model.geom_rbound[link.geoms[0]]) ** 2  # a ball's
                left, _, tensor = (values[0, link.parent] for values in self.inertials(mass, ipos, inertia))
                low, middle, high = np.linalg.eigvalsh(tensor)
                if left > 0.0 and low > 0.0 and low + middle >= high:
                    break
                kilos *= 0.1
        return self._parts

    def _in_root(self, geom: int) -> tuple[Array, Array]:
        """Find place (3,) and axes (3, 3) of a geom in the body that moves."""
        body, model = int(self.model.geom_bodyid[geom]), self.model
        return (
            self._place[body] + self._turn[body] @ model.geom_pos[geom],
            self._turn[body] @ _matrix(model.geom_quat[geom]),
        )

    # ------------------------------------------------------------------------------------------------------------ the file

    def write(self, path: Path) -> list[list[int]]:
        """Write the URDF, `*.urdf`, and the meshes that collide beside.

        Returns:
            The geom that each of a link's shapes is of, in the file's order, by link: a capsule is three.
        """
        model = self.model
        weights = self.inertials(model.body_mass[None], model.body_ipos[None], model.body_inertia[None])
        root, shapes = Element("robot", name=path.stem), []
        for number, link in enumerate(self.links):
            element = SubElement(root, "link", name=link.name)
            _write_inertial(element, *(values[0, number] for values in weights))
            shapes.append([])
            for geom in link.geoms:
                shapes[-1] += [geom] * self._write_geom(geom, link, element, path)
        for link in self.links[1:]:
            self._write_joint(link, root)
        ElementTree.indent(root)
        ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
        return shapes

    def _write_joint(self, link: Link, root: Element) -> None:
        model, number, parent = self.model, link.joint, self.links[link.parent]
        kind, name, turned, place = "fixed", f"{link.name}_fixed", np.eye(3), np.array(link.place)
        if number >= 0:
            slides, limited = model.jnt_type[number] == _SLIDE, bool(model.jnt_limited[number])
            kind = "prismatic" if slides else "revolute" if limited else "continuous"
            name = name_of(model, "joint", number)
            above = int(model.body_parentid[link.body])
            turned = self._turn[above] @ _matrix(model.body_quat[link.body])
            place = self._place[above] + self._turn[above] @ model.body_pos[link.body] + turned @ place
            # a URDF's joint is at zero where the file has it, and MuJoCo's at its `ref`
            back, axis = -float(model.qpos0[model.jnt_qposadr[number]]), model.jnt_axis[number]
            if slides:
                place = place + back * (turned @ axis)
            else:
                quat = np.zeros(4)
                mujoco.mju_axisAngle2Quat(quat, axis, back)
                turned = turned @ _matrix(quat)
        joint = SubElement(root, "joint", name=name, type=kind)
        SubElement(joint, "parent", link=parent.name)
        SubElement(joint, "child", link=link.name)
        SubElement(joint, "origin", xyz=_text(place - np.array(parent.place)), rpy=_text(_angles(turned)))
        if number < 0:
            return
        SubElement(joint, "axis", xyz=_text(model.jnt_axis[number]))
        limits = {"effort": _text(effort_limit(model, number)), "velocity": _text(_FASTEST)}
        if model.jnt_limited[number] or slides:  # what a slide does not say is zero
            low, high = model.jnt_range[number] if model.jnt_limited[number] else (-_FAR, _FAR)
            limits |= {"lower": _text(low), "upper": _text(high)}
        SubElement(joint, "limit", limits)

    def _write_geom(self, geom: int, link: Link, element: Element, path: Path) -> int:
        """Write what a geom is, of shapes that every reader of URDF knows, and count them."""
        model, before = self.model, len(element)
        kind, size = mujoco.mjtGeom(int(model.geom_type[geom])), model.geom_size[geom]
        place, turned = self._in_root(geom)
        place = place - np.array(link.place)
        name = name_of(model, "geom", geom)

        def shape(tag: str, at: Array, **numbers: str) -> None:
            collision = SubElement(element, "collision", name=name)
            SubElement(collision, "origin", xyz=_text(at), rpy=_text(_angles(turned)))
            SubElement(SubElement(collision, "geometry"), tag, numbers)

        if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
            shape("sphere", place, radius=_text(size[0]))
        elif kind == mujoco.mjtGeom.mjGEOM_BOX:
            shape("box", place, size=_text(2.0 * size))
        elif kind in (mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_CAPSULE):
            shape("cylinder", place, radius=_text(size[0]), length=_text(2.0 * size[1]))
            if kind == mujoco.mjtGeom.mjGEOM_CAPSULE:  # a URDF has none: its ends are balls
                for end in (-1.0, 1.0):
                    shape("sphere", place + end * size[1] * turned[:, 2], radius=_text(size[0]))
        elif kind == mujoco.mjtGeom.mjGEOM_MESH:
            file = path.with_name(f"{path.stem}_{geom}.obj")
            _write_mesh(model, int(model.geom_dataid[geom]), file)
            shape("mesh", place, filename=file.name)
        return len(element) - before


def _parts_of(geoms: set[int], measured: list[Collection[int]]) -> list[tuple[int, ...]]:
    """Choose the sets that need a link of their own, of those that have some of a body's geoms.

    Raises:
        UserError: two of them share some geoms and not all.
    """
    sets = sorted({tuple(sorted(own)) for one in measured if (own := geoms.intersection(one))}, key=len)
    if sum(map(len, sets)) > len({geom for one in sets for geom in one}):
        raise UserError("contacts are asked for of two sets of geoms that share some, which a URDF's links cannot tell apart")
    # where all that collides is in one of them, the largest is the body's own link
    return sets[:-1] if sets and sum(map(len, sets)) == len(geoms) else sets


def effort_limit(model: mujoco.MjModel, joint: int) -> float:
    """Find the largest force of what drives a joint [N m or N]; 0 where nothing does, float32's largest where it has no limit."""
    if not motors_of(model, joint):
        return 0.0
    low, high = torque_range(model, joint)
    return min(max(-low, high), float(np.finfo(np.float32).max))


def _moving(model: mujoco.MjModel) -> list[int]:
    """List the bodies that move, base first, each after its parent.

    Raises:
        UserError: there is not one robot, or one that no URDF can describe.
    """
    moving = [body for body in range(1, model.nbody) if model.body_weldid[body] == body]
    bases = [body for body in moving if model.body_weldid[model.body_parentid[body]] == 0]
    if len(bases) != 1 or not model.body_jntnum[bases[0]] or model.jnt_type[model.body_jntadr[bases[0]]] != _FREE:
        names = ", ".join(repr(name_of(model, "body", body)) for body in bases) or "nothing that moves"
        raise UserError(f"a URDF is of one robot that is free to move, and on the world hang {names}")
    for body in moving:
        start, count = int(model.body_jntadr[body]), int(model.body_jntnum[body])
        kinds = [int(kind) for kind in model.jnt_type[start : start + count]]
        if body != bases[0] and (count > 1 or set(kinds) - {_HINGE, _SLIDE}):
            names = " and ".join(mujoco.mjtJoint(kind).name.removeprefix("mjJNT_").lower() for kind in kinds)
            raise UserError(
                f"body {name_of(model, 'body', body)!r} has {names}; a URDF's link has one hinge or slide: put a body between two"
            )
        if model.body_mass[body] == 0.0 and not any(
            model.body_mass[other] for other in range(model.nbody) if model.body_weldid[other] == body
        ):
            raise UserError(
                f"body {name_of(model, 'body', body)!r} moves and has no mass, which readers of URDFs fill in; give it one"
            )
    if model.neq or model.ntendon:
        raise UserError(f"the model has {'equality constraints' if model.neq else 'tendons'}, which a URDF does not have")
    return moving


def collides(model: mujoco.MjModel) -> NDArray[np.bool_]:
    """Say of each geom whether it may touch anything, (ngeom,)."""
    return (model.geom_contype | model.geom_conaffinity) != 0  # a mask of all 32 bits is negative


def name_of(model: mujoco.MjModel, kind: str, number: int) -> str:
    """Name a part of a model, as the URDF does where the file does not."""
    return getattr(model, kind)(number).name or f"{kind}_{number}"


def _write_inertial(link: Element, mass: float, centre: Array, tensor: Array) -> None:
    inertial = SubElement(link, "inertial")
    SubElement(inertial, "origin", xyz=_text(centre), rpy="0 0 0")
    SubElement(inertial, "mass", value=_text(mass))
    names = {"ixx": (0, 0), "ixy": (0, 1), "ixz": (0, 2), "iyy": (1, 1), "iyz": (1, 2), "izz": (2, 2)}
    SubElement(inertial, "inertia", {name: _text(tensor[place]) for name, place in names.items()})


def _write_mesh(model: mujoco.MjModel, mesh: int, path: Path) -> None:
    start, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    lines = [f"v {_text(vertex)}" for vertex in model.mesh_vert[start : start + count].astype(np.float64)]
    start, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    lines += [f"f {' '.join(str(int(corner) + 1) for corner in face)}" for face in model.mesh_face[start : start + count]]
    path.write_text("\n".join(lines) + "\n")


def _steiner(where: Array) -> Array:
    """Find the inertia about the origin of a kilogram at places (..., 3), (..., 3, 3)."""
    return (where * where).sum(-1)[..., None, None] * np.eye(3) - where[..., :, None] * where[..., None, :]


def _matrix(quat: Array) -> Array:
    """Make a rotation's matrix, (3, 3), of its quaternion wxyz."""
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, quat)
    return matrix.reshape(3, 3)


def _angles(matrix: Array) -> Array:
    """Find roll, pitch and yaw about fixed axes of a rotation, (3,) [rad]."""
    level = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    pitch = np.arctan2(-matrix[2, 0], level)
    if level > 1e-9:
        return np.array([np.arctan2(matrix[2, 1], matrix[2, 2]), pitch, np.arctan2(matrix[1, 0], matrix[0, 0])])
    # straight up or down, roll and yaw turn about the same axis
    return np.array([np.arctan2(-matrix[1, 2], matrix[1, 1]), pitch, 0.0])


def _tuple(place: Array) -> tuple[float, float, float]:
    x, y, z = (float(one) for one in place)
    return x, y, z


def _text(numbers: Array | float) -> str:
    """Write numbers so that they are read back to the bit."""
    return " ".join(repr(float(number) + 0.0) for number in np.atleast_1d(numbers))
