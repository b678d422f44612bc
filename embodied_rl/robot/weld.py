"""Joints taken out of a model at a fixed position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mujoco
    import numpy as np


def obstacles(spec: mujoco.MjSpec, joints: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Find what keeps joints from being welded: the joint, and why.

    Beside what names the joint itself, that is what MuJoCo measures in the pose of the file, where the joint is not yet
    where it is welded: constraints between bodies, and springs of tendons, on either side of it.
    """
    import mujoco

    for name in joints:
        joint = spec.joint(name)
        if joint is None:  # told elsewhere
            continue
        for equality in spec.equalities:
            ends = [one for one in (equality.name1, equality.name2) if one]
            named = equality.type == mujoco.mjtEq.mjEQ_JOINT and name in ends
            measured = equality.type in (mujoco.mjtEq.mjEQ_CONNECT, mujoco.mjtEq.mjEQ_WELD)
            if measured and equality.objtype == mujoco.mjtObj.mjOBJ_BODY:
                named = _crosses(joint.parent, [spec.body(one) for one in (equality.name1, equality.name2 or "world")])
            if named:
                yield name, f"the equality constraint {equality.name!r} of {' and '.join(map(repr, ends))} needs it"
        for tendon in spec.tendons:
            targets = [wrap.target for wrap in tendon.path if wrap.type != mujoco.mjtWrap.mjWRAP_PULLEY]
            if any(wrap.type == mujoco.mjtWrap.mjWRAP_JOINT for wrap in tendon.path):
                pulls = name in [target.name for target in targets]
            else:
                spring = any(tendon.stiffness) and tendon.springlength[0] < 0.0
                pulls = spring and _crosses(joint.parent, [target.parent for target in targets])
            if pulls:
                yield name, f"the tendon {tendon.name!r} pulls it"
        # its numbers are not those of the compiled model, and what stands in it inherits the scale
        if any(tuple(frame.scale) != (1.0, 1.0, 1.0) for frame in spec.frames):
            yield name, "the model has a <frame> with a scale"


def _crosses(moved: mujoco.MjsBody, bodies: Iterable[mujoco.MjsBody]) -> bool:
    """Say whether some of the bodies hang on the moved one and some do not."""
    sides = set()
    for body in bodies:
        chain = body
        while chain is not None and chain.name != moved.name:
            chain = chain.parent
        sides.add(chain is not None)
    return len(sides) == 2


def weld(spec: mujoco.MjSpec, positions: Mapping[str, float]) -> None:
    """Take joints out of a model: each body moves to where its joints, at these positions [rad or m], put it.

    mj_kinematics moves a body by one joint after the other, each in the frame that those before it made: with the
    displacement J of a joint, written in the body's own frame, the pose X becomes X J. A joint that stays before one
    that goes, X J1(q) J2, is written J2^-1 J1(q) J2 in the new frame, X J2.
    """
    import mujoco
    import numpy as np

    spec.compiler.fusestatic = False  # a body without joints would vanish into its parent
    model = spec.compile()  # poses and axes in the bodies' own frames, whatever way the file says them
    moved_bodies = [body for body in spec.bodies if any(joint.name in positions for joint in body.joints)]
    for body, compiled in [(body, model.body(body.id)) for body in moved_bodies]:  # ids go with the first deletion
        pos, quat = compiled.pos.copy(), compiled.quat.copy()
        kept: list[tuple[mujoco.MjsJoint, np.ndarray, np.ndarray]] = []
        for joint in list(body.joints):
            known = model.joint(joint.name)
            anchor, axis = known.pos.copy(), known.axis.copy()
            if joint.name not in positions:
                kept.append((joint, anchor, axis))
                continue
            moved = positions[joint.name] - known.qpos0[0]
            shift, turn = _displacement(known.type[0] == mujoco.mjtJoint.mjJNT_HINGE, anchor, axis, moved)
            pos, quat = pos + _rotate(quat, shift), _multiply(quat, turn)
            back = turn * (1.0, -1.0, -1.0, -1.0)
            kept = [(one, _rotate(back, at - shift), _rotate(back, along)) for one, at, along in kept]
            spec.delete(joint)
        # compiled poses are relative to the parent, those of the file to the <frame> that a body or joint stands in
        body.set_frame(body.parent.add_frame())
        body.pos, body.quat, body.alt.type = pos, quat / np.linalg.norm(quat), mujoco.mjtOrientation.mjORIENTATION_QUAT
        for joint, anchor, axis in kept:
            joint.set_frame(body.add_frame())
            joint.pos, joint.axis = anchor, axis


def _displacement(hinge: bool, anchor: np.ndarray, axis: np.ndarray, moved: float) -> tuple[np.ndarray, np.ndarray]:
    """Give the translation and the rotation by which a joint moves its body, in the body's frame."""
    import mujoco
    import numpy as np

    turn = np.array((1.0, 0.0, 0.0, 0.0))
    if not hinge:
        return axis * moved, turn
    mujoco.mju_axisAngle2Quat(turn, axis, moved)
    return anchor - _rotate(turn, anchor), turn


def _rotate(quat: np.ndarray, vector: np.ndarray) -> np.ndarray:
    import mujoco
    import numpy as np

    result = np.zeros(3)
    mujoco.mju_rotVecQuat(result, vector, quat)
    return result


def _multiply(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    import mujoco
    import numpy as np

    result = np.zeros(4)
    mujoco.mju_mulQuat(result, left, right)
    return result
