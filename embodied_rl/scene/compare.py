"""What two compiled models have otherwise: every field of mjModel, element by element."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import mujoco
import numpy as np

from embodied_rl.scene.contacts import collides

#: Numbers that differ by less, as a share of the larger one or in themselves, are the same.
_RELATIVE, _ABSOLUTE = 1e-6, 1e-10

#: Fields that are not compared, and why; patterns, of which the first counts.
NOT_COMPARED = {
    "names": "elements are matched by them",
    "names_map": "elements are matched by them",
    "name_*": "elements are matched by them",
    "paths": "where the files lay",
    "signature": "a number drawn from all others",
    "*adr": "where an element's numbers lie",
    "vis": "looks",
    "*_rgba": "looks",
    "*_matid": "looks",
    "mat_*": "looks",
    "tex_*": "looks",
    "skin_*": "looks",
    "light_*": "looks",
    "cam_*0": "looks",
    "geom_castshadow": "looks",
    "tendon_width": "looks",
    "mesh_*texcoord*": "looks",
    "flex*texcoord*": "looks",
    "flex_flatskin": "looks",
    "geom_group": "what a viewer shows at once",
    "site_group": "what a viewer shows at once",
    "jnt_group": "what a viewer shows at once",
    "tendon_group": "what a viewer shows at once",
    "flex_group": "what a viewer shows at once",
    "stat.center": "the viewer's first look",
    "stat.extent": "the viewer's first look",
    "stat.meansize": "the viewer's units",
    "stat.meanmass": "the viewer's units",
    "*_user": "its author's own, which the physics does not read",
    "numeric_*": "its author's own, which the physics does not read",
    "text_*": "its author's own, which the physics does not read",
    "tuple_*": "its author's own, which the physics does not read",
    "flg_*": "whether any element has what is compared of each",
    "[MBD]_*": "where a matrix has zeros: follows from the tree",
    "map[MD]2[MD]": "where a matrix has zeros: follows from the tree",
    "*_J_*": "where a matrix has zeros: follows from the tree",
    "efm*": "a matrix of flexes factored: follows from them",
    "bvh_*": "to search fast: follows from the geoms",
    "*_bvhnum": "to search fast: follows from the geoms",
    "oct_*": "to search fast: follows from the meshes",
    "mesh_octnum": "to search fast: follows from the meshes",
    "geom_rbound": "to search fast: follows from the shape",
    "geom_aabb": "to search fast: follows from the shape",
    "*_sameframe": "to compute fast: follows from the poses",
    "body_simple": "to compute fast: follows from the inertias",
    "dof_simplenum": "to compute fast: follows from the inertias",
    "body_rootid": "follows from the parents",
    "body_weldid": "follows from the parents and joints",
    "body_jntnum": "follows from the joints",
    "body_dofnum": "follows from the joints",
    "body_geomnum": "follows from the geoms",
    "body_contype": "follows from the geoms",
    "body_conaffinity": "follows from the geoms",
    "body_margin": "follows from the geoms",
    "body_treeid": "follows from the parents and joints",
    "tree_bodynum": "follows from the parents and joints",
    "tree_dofnum": "follows from the parents and joints",
    "dof_treeid": "follows from the parents and joints",
    "tendon_tree*": "follows from what it passes",
    "dof_bodyid": "follows from the joints",
    "dof_jntid": "follows from the joints",
    "dof_parentid": "follows from the joints",
    "jnt_actuatorid": "follows from the actuators",
    "tendon_actuatorid": "follows from the actuators",
    "actuator_acc0": "follows from the joint's inertia",
    "sensor_*": "the file's and those that terms ask for are told as such",
    "key_*": "the file's are told as such",
    "actuator_length0": "follows from the joint",
    "pair_signature": "follows from the pair's geoms",
}

_OBJECTS = {
    name: getattr(mujoco.mjtObj, f"mjOBJ_{of}")
    for name, of in {
        "body": "BODY",
        "jnt": "JOINT",
        "geom": "GEOM",
        "site": "SITE",
        "cam": "CAMERA",
        "light": "LIGHT",
        "tendon": "TENDON",
        "actuator": "ACTUATOR",
        "sensor": "SENSOR",
        "eq": "EQUALITY",
        "pair": "PAIR",
        "exclude": "EXCLUDE",
        "key": "KEY",
        "mesh": "MESH",
        "hfield": "HFIELD",
        "flex": "FLEX",
        "plugin": "PLUGIN",
    }.items()
}
KINDS = {kind: "joint" if kind == "jnt" else "camera" if kind == "cam" else kind for kind in _OBJECTS}
"""Kinds of elements, the beginnings of their fields' names: what people call them."""
#: Fields that are the number of another element, and of which kind.
_REFERENCES = {
    **{f"{kind}_bodyid": "body" for kind in ("jnt", "geom", "site", "cam")},
    "body_parentid": "body",
    "cam_targetbodyid": "body",
    "pair_geom1": "geom",
    "pair_geom2": "geom",
    **{f"{kind}_plugin": "plugin" for kind in ("body", "geom")},
}
_OF_OBJECT = {int(of): kind for kind, of in _OBJECTS.items()} | {int(mujoco.mjtObj.mjOBJ_XBODY): "body"}
_SIZED = {int(mujoco.mjtGeom.mjGEOM_MESH): "mesh", int(mujoco.mjtGeom.mjGEOM_SDF): "mesh"}
_SIZED[int(mujoco.mjtGeom.mjGEOM_HFIELD)] = "hfield"
_WRAPPED = {
    int(getattr(mujoco.mjtWrap, f"mjWRAP_{of}")): kind
    for of, kind in {"JOINT": "jnt", "SITE": "site", "SPHERE": "geom", "CYLINDER": "geom"}.items()
}
_CONSTRAINED = {int(mujoco.mjtEq.mjEQ_JOINT): "jnt", int(mujoco.mjtEq.mjEQ_TENDON): "tendon"}
_DRIVEN = {
    int(getattr(mujoco.mjtTrn, f"mjTRN_{of}")): kind
    for of, kind in {"JOINT": "jnt", "JOINTINPARENT": "jnt", "TENDON": "tendon", "SITE": "site", "BODY": "body"}.items()
}


@dataclass(frozen=True)
class Difference:
    """A number that the two models have otherwise, or an element that only one of them has."""

    field: str
    """Of mjModel; the kind of the element where one model lacks it."""
    element: str
    """By name; an unnamed one by its body and its place in it."""
    theirs: Any
    """A row of numbers or the name of another element; None where they lack the element."""
    ours: Any
    ids: tuple[int | None, int | None] = (None, None)
    """Of the element, in theirs and in ours."""


@dataclass(frozen=True)
class Comparison:
    """What was compared, and what came of it."""

    compared: tuple[str, ...]
    """Fields."""
    unknown: tuple[str, ...]
    """Fields of mjModel that are neither compared nor in `NOT_COMPARED`."""
    differences: tuple[Difference, ...]


def compare(theirs: mujoco.MjModel, ours: mujoco.MjModel, apart: Collection[str] = ()) -> Comparison:
    """Compare all that two models are, save `NOT_COMPARED`.

    Args:
        theirs: a model.
        ours: another.
        apart: kinds of which no element of one is one of the other, whatever its name.
    """
    pairing = Pairing(theirs, ours, apart)
    compared, unknown = [], []
    found = list(pairing.single())
    for field in fields(theirs):
        if why_not(field):
            continue
        told = pairing.differences(field)
        if told is None:
            unknown.append(field)
            continue
        compared.append(field)
        found += told
    return Comparison(tuple(compared), tuple(unknown), tuple(found))


def fields(model: Any, of: str = "") -> Iterator[str]:
    """List what a model is: its public attributes, those of `opt` and `stat` one by one; counts of elements aside."""
    for name in dir(model):
        value = None if name.startswith("_") else getattr(model, name)
        if value is None or callable(value) or (isinstance(value, int) and name.startswith("n") and not of):
            continue
        if name in ("opt", "stat") and not of:
            yield from fields(value, f"{name}.")
        else:
            yield of + name


def why_not(field: str) -> str | None:
    """Say why a field is not compared; None: it is."""
    return next((why for pattern, why in NOT_COMPARED.items() if fnmatchcase(field, pattern)), None)


def same(one: Any, other: Any, field: str = "") -> bool:
    """Say whether two values of a field are the same; q and -q are one orientation."""
    if not isinstance(one, np.ndarray) or not isinstance(other, np.ndarray) or one.dtype.kind not in "fiub":
        return bool(np.array_equal(one, other))
    if one.shape != other.shape:
        return False
    close = np.allclose(one, other, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True)
    return close or (field.endswith("quat") and np.allclose(one, -other, rtol=_RELATIVE, atol=_ABSOLUTE))


class Pairing:
    """Which element of one model is which of the other.

    By name; what one of them does not name by its body and its place among the unnamed, if it has the same shape.
    """

    def __init__(self, theirs: mujoco.MjModel, ours: mujoco.MjModel, apart: Collection[str] = ()) -> None:
        self.models = theirs, ours
        self.pairs: dict[str, list[tuple[int, int]]] = {}
        self._labels: tuple[dict[str, list[str]], dict[str, list[str]]] = {}, {}
        for kind in _OBJECTS:
            pairs = [] if kind in apart else sorted(self._paired(kind))
            self.pairs[kind] = pairs
            for model, labels in zip(self.models, self._labels, strict=True):
                labels[kind] = [_label(model, kind, index) for index in range(_count(model, kind))]
            for one, other in pairs:  # what ours refers to is called as theirs
                self._labels[1][kind][other] = self._labels[0][kind][one] = (
                    _name(theirs, kind, one) or _name(ours, kind, other) or self._labels[0][kind][one]
                )

    def _paired(self, kind: str) -> Iterator[tuple[int, int]]:
        theirs, ours = self.models
        names = {_name(theirs, kind, index): index for index in range(_count(theirs, kind))}
        left = list(range(_count(theirs, kind)))
        rest = []
        if kind == "body":  # a parent comes before its children
            self.pairs["body"] = []
        for index in range(_count(ours, kind)):
            one = names.get(_name(ours, kind, index)) if _name(ours, kind, index) else None
            if one is None and kind == "body":
                one = next((body for body in left if not _name(theirs, kind, body) and self._alike(kind, body, index)), None)
            if one is None:
                rest.append(index)
                continue
            left.remove(one)
            if kind == "body":
                self.pairs["body"].append((one, index))
            yield one, index
        for index in rest:
            for one in left:
                # a URDF's geoms have names of ours
                nameless = kind == "geom" or not _name(theirs, kind, one) or not _name(ours, kind, index)
                if nameless and kind != "body" and self._alike(kind, one, index):
                    left.remove(one)
                    yield one, index
                    break

    def _alike(self, kind: str, one: int, other: int) -> bool:
        theirs, ours = self.models
        hangs_on = {"body": "body_parentid"}.get(kind, f"{kind}_bodyid")
        if hasattr(ours, hangs_on):
            bodies = int(getattr(theirs, hangs_on)[one]), int(getattr(ours, hangs_on)[other])
            if bodies not in self.pairs["body"]:
                return False
        if kind == "geom" and collides(theirs.geom(one)) != collides(ours.geom(other)):
            return False
        shape = {"jnt": ["jnt_type"], "geom": ["geom_type", "geom_size", "geom_pos", "geom_quat"], "eq": ["eq_type"]}
        return all(
            same(np.array(getattr(theirs, field)[one]), np.array(getattr(ours, field)[other]), field)
            for field in shape.get(kind, [])
        )

    def label(self, kind: str, index: int, side: int) -> str:
        """Name an element of theirs (0) or ours (1)."""
        return self._labels[side][kind][index] if index >= 0 else "none"

    def single(self) -> Iterator[Difference]:
        """Find the elements that only one model has."""
        for kind, pairs in self.pairs.items():
            for side in (0, 1):
                paired = {pair[side] for pair in pairs}
                for index in range(_count(self.models[side], kind)):
                    if index not in paired:
                        name = self.label(kind, index, side)
                        if side == 0:
                            yield Difference(kind, name, "there", None, (index, None))
                        else:
                            yield Difference(kind, name, None, "there", (None, index))

    def differences(self, field: str) -> list[Difference] | None:
        """Find where a field differs; None: it is of no kind that is known."""
        if field.startswith(("opt.", "stat.")):
            of, _, name = field.partition(".")
            there, here = (np.asarray(getattr(getattr(model, of), name)) for model in self.models)
            return [] if same(there, here) else [Difference(field, "", there, here)]
        rows = self._rows(field)
        if rows is None:
            return None
        return [Difference(field, name, there, here, ids) for name, ids, there, here in rows if not same(there, here, field)]

    def _rows(self, field: str) -> Iterator[tuple[str, tuple[int, int], Any, Any]] | None:
        kind = field.partition("_")[0]
        if field in ("qpos0", "qpos_spring"):
            return self._of_joints(field, "qpos")
        if kind == "dof":
            return self._of_joints(field, "dof")
        if kind == "wrap":
            return self._of_tendons(field)
        if field == "tree_sleep_policy":
            return self._of_trees(field)
        if kind in _OBJECTS and all(len(getattr(model, field)) == _count(model, kind) for model in self.models):
            return (
                (self.label(kind, one, 0), (one, other), self._value(field, one, 0), self._value(field, other, 1))
                for one, other in self.pairs[kind]
            )
        if kind in ("mesh", "hfield", "flex", "flexedge", "plugin"):  # of several numbers per element: all in one
            there, here = (np.asarray(getattr(model, field)) for model in self.models)
            return iter([("", (0, 0), there, here)])
        return None

    def _of_joints(self, field: str, address: str) -> Iterator[tuple[str, tuple[int, int], Any, Any]]:
        for pair in self.pairs["jnt"]:
            values = []
            for model, joint in zip(self.models, pair, strict=True):
                first = int(getattr(model, f"jnt_{address}adr")[joint])
                count = {0: (7, 6), 1: (4, 3)}.get(int(model.jnt_type[joint]), (1, 1))[address == "dof"]
                values.append(np.array(getattr(model, field)[first : first + count]))
            yield self.label("jnt", pair[0], 0), pair, values[0], values[1]

    def _of_tendons(self, field: str) -> Iterator[tuple[str, tuple[int, int], Any, Any]]:
        for pair in self.pairs["tendon"]:
            values = []
            for side, (model, tendon) in enumerate(zip(self.models, pair, strict=True)):
                first, count = int(model.tendon_adr[tendon]), int(model.tendon_num[tendon])
                values.append([self._value(field, index, side) for index in range(first, first + count)])
            yield self.label("tendon", pair[0], 0), pair, values[0], values[1]

    def _of_trees(self, field: str) -> Iterator[tuple[str, tuple[int, int], Any, Any]]:
        trees = [
            {
                self.label("body", int(model.tree_bodyadr[tree]), side): np.array(getattr(model, field)[tree])
                for tree in range(model.ntree)
            }
            for side, model in enumerate(self.models)
        ]
        for name in trees[0].keys() & trees[1].keys():
            yield name, (0, 0), trees[0][name], trees[1][name]

    def _value(self, field: str, index: int, side: int) -> Any:
        model, value = self.models[side], np.array(getattr(self.models[side], field)[index])
        if field in _REFERENCES:
            return self.label(_REFERENCES[field], int(value), side)
        if field in ("geom_dataid", "site_dataid"):
            kind = _SIZED.get(int(getattr(model, field.replace("dataid", "type"))[index]))
            return self.label(kind, int(value), side) if kind else "none"
        if field in ("eq_obj1id", "eq_obj2id"):
            kind = _CONSTRAINED.get(int(model.eq_type[index]), _OF_OBJECT.get(int(model.eq_objtype[index])))
            return self.label(kind, int(value), side) if kind else value
        if field == "actuator_trnid":
            kind = _DRIVEN.get(int(model.actuator_trntype[index]))
            return self.label(kind, int(value[0]), side) if kind else value
        if field == "wrap_objid":
            kind = _WRAPPED.get(int(model.wrap_type[index]))
            return self.label(kind, int(value), side) if kind else "none"
        if field == "wrap_prm" and _WRAPPED.get(int(model.wrap_type[index])) == "geom":  # the site that tells the side
            return self.label("site", round(float(value)), side)
        if field == "exclude_signature":
            return " and ".join(sorted(self.label("body", one, side) for one in (int(value) >> 16, int(value) & 0xFFFF)))
        if field == "body_mocapid":
            return np.array(int(value) >= 0)
        return value


def _count(model: mujoco.MjModel, kind: str) -> int:
    return int(getattr(model, f"n{kind}")) if kind != "actuator" else len(model.actuator_trntype)


def _name(model: mujoco.MjModel, kind: str, index: int) -> str:
    return mujoco.mj_id2name(model, _OBJECTS[kind], index) or ""


def _label(model: mujoco.MjModel, kind: str, index: int) -> str:
    if name := _name(model, kind, index):
        return name
    if kind == "body":
        return f"body {index}"
    if hasattr(model, f"{kind}_bodyid"):
        bodies = getattr(model, f"{kind}_bodyid")
        return f"{KINDS[kind]} {int(np.sum(bodies[:index] == bodies[index]))} of {_label(model, 'body', int(bodies[index]))}"
    return f"{KINDS[kind]} {index}"
