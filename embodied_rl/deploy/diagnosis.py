"""What a difference from golden numbers looks like: the usual mistakes, each tried against the numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mujoco
import numpy as np

#: As close as numbers are when an explanation is right, as a share of the largest of them.
_CLOSE = 1e-3
_CONJUGATE = (1.0, -1.0, -1.0, -1.0)

#: Sentences, and the numbers that each would lead to.
Explanations = Iterator[tuple[str, np.ndarray]]
Golden = Mapping[str, np.ndarray]
Contract = Mapping[str, Any]


def diagnose(name: str, got: np.ndarray, golden: Golden, contract: Contract) -> str:
    """Name the mistake that makes `got` of a golden quantity, (steps, size) both; empty where none that is known does."""
    wanted, kind = golden[name], name.partition("/")[0]
    if kind == "observation":
        (term,) = (term for term in contract["observations"] if term["name"] == name.partition("/")[2])
        size, history = term["size"], term["history"]
        if history > 1 and (sentence := _first(got, _of_history(wanted, golden["reset"], history))):
            return sentence
        got, wanted = got[:, -size:], wanted[:, -size:]
        labels = _labels(term, golden, contract)
        return _first(got, itertools.chain(_of_value(term, wanted, golden, contract), _of_columns(got, wanted, labels, golden)))
    if kind == "actions":
        bare = "the network sees observations that are not normalized; its normalizer was left out"
        return _first(got, itertools.chain([(bare, golden["bare_actions"])], _of_columns(got, wanted, _driven(contract), golden)))
    if kind == "motion":
        if name == "motion/time":
            here, there = f"{got[0, 0]:.4g} s", f"{wanted[0, 0]:.4g} s"
            return f"it takes {here} where it took {there}: another number of physics steps, or another timestep"
        return "the model, its timestep, or the motors' loop between two reads is another one"
    joints = golden["joints"].tolist()
    special = _of_torque(got, golden, contract) if kind == "fine" else _of_targets(wanted, golden, contract)
    return _first(got, itertools.chain(special, _of_columns(got, wanted, joints, golden)))


def _first(got: np.ndarray, explanations: Explanations) -> str:
    """Choose the first explanation that leads to these numbers."""
    close = _CLOSE * max(1.0, float(np.abs(got).max()))
    return next((said for said, values in explanations if said and np.abs(values - got).max() <= close), "")


def _of_history(wanted: np.ndarray, reset: np.ndarray, history: int) -> Explanations:
    frames = wanted.reshape(len(wanted), history, -1)
    yield "its history has the newest value first; the oldest comes first", frames[:, ::-1].reshape(wanted.shape)
    by_number = frames.transpose(0, 2, 1).reshape(wanted.shape)
    yield "its history stands number by number; whole values stand one after the other, the oldest first", by_number
    empty, age = frames.copy(), 0
    for step, begins in enumerate(reset):
        age = 1 if begins else age + 1
        empty[step, : max(0, history - age)] = 0.0
    yield "its history begins with zeros; after a reset it is full of the first value", empty.reshape(wanted.shape)


def _of_value(term: Mapping[str, Any], wanted: np.ndarray, golden: Golden, contract: Contract) -> Explanations:
    scale = term["scale"]
    yield f"it is not multiplied by its scale, {scale:g}", wanted / scale
    yield "it is in degrees; radians are needed", np.degrees(wanted)
    yield "it is multiplied by pi / 180; it is in radians already", np.radians(wanted)
    yield "its sign is reversed", -wanted
    if term["size"] == 3 and term["command"] is None:
        yield from _of_vector(term, wanted, golden["qpos"][:, 3:7])
    if term["term"] == "joint_pos":
        default = _column(contract, "default", golden)
        yield "it is in degrees; radians are needed", np.degrees(wanted + scale * default) - scale * default
        yield "the default pose is not taken off; positions count from there", wanted + scale * default
        yield "the default pose is added; it is taken off", wanted + 2.0 * scale * default
    if term["term"] == "last_action":
        started, actions = golden["reset"][:, None] > 0, golden["actions"] * scale
        before = np.where(started, 0.0, np.vstack((actions[:1], actions[:-1])))
        yield "it is not clipped as the action is", before
        yield "it is the present action; the one before is needed", np.clip(actions, wanted.min(), wanted.max())
        targets = golden["q"][:, [golden["joints"].tolist().index(name) for name in _driven(contract)]]
        yield (
            "it is the target; the action before offset and scale is needed",
            np.where(started, 0.0, scale * np.vstack((targets[:1], targets[:-1]))),
        )


def _of_vector(term: Mapping[str, Any], wanted: np.ndarray, quats: np.ndarray) -> Explanations:
    """Explain by frames and quaternions."""
    yield "it is in the world's frame; the base's own is needed", _rotated(wanted, quats)
    yield "it is turned into the base's frame twice", _rotated(wanted, quats * _CONJUGATE)
    if term["term"] != "projected_gravity":
        return
    down = np.tile((0.0, 0.0, -term["scale"]), (len(quats), 1))
    yield "it is turned the wrong way: gravity is turned from the world's into the base's frame", _rotated(down, quats)
    for order in ([1, 2, 3, 0], [3, 0, 1, 2]):
        mixed = quats[:, order]
        sentence = "the quaternion's order is mistaken: xyzw is taken for wxyz, or the other way round"
        w, x, y, z = mixed.T
        third_row = np.stack((2 * (w * y - x * z), -2 * (w * x + y * z), 2 * (x * x + y * y) - 1), axis=1)
        yield sentence, third_row * term["scale"]  # of a rotation matrix written out
        yield sentence, _rotated(down, mixed * _CONJUGATE)


def _of_targets(wanted: np.ndarray, golden: Golden, contract: Contract) -> Explanations:
    names, driven = golden["joints"].tolist(), _driven(contract)
    default, actions = _column(contract, "default", golden), np.zeros_like(wanted)
    actions[:, [names.index(name) for name in driven]] = clipped(contract, golden["actions"])
    moved = np.isin(names, driven)
    yield "the action's offset, the default pose, is not added", np.where(moved, wanted - default, wanted)
    yield "the action is not multiplied by its scale", np.where(moved, default + actions, wanted)
    yield "neither offset nor scale: it is the bare action", np.where(moved, actions, wanted)


def _of_torque(got: np.ndarray, golden: Golden, contract: Contract) -> Explanations:
    """Measure the gains of each joint by its torques, and compare; where they are bounded nothing is measured."""
    names, wanted = golden["joints"].tolist(), golden["fine/torque"]
    yield "their sign is reversed", -wanted
    away, rate = golden["fine/q"] - golden["fine/qpos"][:, 7:], golden["fine/dq"] - golden["fine/qvel"][:, 6:]
    limits, explained, said = _column(contract, "effort_limit", golden), np.zeros_like(got), []
    for joint, name in enumerate(names):
        free = (np.abs(got[:, joint]) < 0.999 * limits[joint]) & (np.abs(wanted[:, joint]) < 0.999 * limits[joint])
        design = np.stack((away[:, joint], rate[:, joint]), axis=1)
        here, there = (np.linalg.lstsq(design[free], torque[free, joint], rcond=None)[0] for torque in (got, wanted))
        explained[:, joint] = np.clip(design @ here, -limits[joint], limits[joint])
        for what, one, other in zip(("kp", "kd"), here, there, strict=True):
            if abs(one - other) > _CLOSE * max(1.0, abs(other)):
                times = f", {one / other:.3g} times" if abs(other) > 1e-6 else ""
                said.append(f"{what} of {name} is {one:.4g} where it was {other:.4g}{times}")
    more = f" ({len(said) - 1} more)" if len(said) > 1 else ""
    yield f"other gains: {said[0]}{more}" if said else "", explained
    yield "they are not bounded by the effort limits", np.where(np.abs(got) > limits, got, wanted)


def _of_columns(got: np.ndarray, wanted: np.ndarray, labels: Sequence[str], golden: Golden) -> Explanations:
    """Explain by numbers in another order, and by some that are off by a constant or a factor."""
    if len(labels) != got.shape[1]:
        return
    mirror = dict(zip(golden["joints"].tolist(), golden["mirror"].tolist(), strict=True))
    # as they are, and about their means: each may still count from a number that belongs to its place
    for means in (0.0 * wanted[:1], np.stack((got.mean(axis=0), wanted.mean(axis=0)))):
        gaps = np.abs((got - means[0])[:, :, None] - (wanted - means[-1])[:, None, :]).max(axis=0)
        nearest = np.argmin(gaps, axis=1)
        own = np.diagonal(gaps) <= gaps.min(axis=1) + 1e-9
        order: list[int] = np.where(own, np.arange(len(nearest)), nearest).tolist()
        explained = wanted[:, order] + means[0] - means[-1][order]
        if (~own).sum() == 2:
            yield f"{' and '.join(labels[index] for index in np.flatnonzero(~own).tolist())} are swapped", explained
        if all(labels[source] == mirror.get(labels[index]) for index, source in enumerate(order)):
            yield "left and right are swapped", explained
        if not own.all():
            yield f"they stand in another order: {', '.join(labels[source] for source in order)}", explained
    differ = np.abs(got - wanted).max(axis=0) > _CLOSE * max(1.0, float(np.abs(wanted).max()))
    of = [label for label, one in zip(labels, differ, strict=True) if one]
    more = f" ({len(of) - 1} more)" if len(of) > 1 else ""
    shift = np.where(differ, np.median(got - wanted, axis=0), 0.0)
    if of:
        yield f"{of[0]} is off by {shift[differ][0]:.4g}{more}", wanted + shift
        factor = np.where(differ, (got * wanted).sum(axis=0) / np.maximum((wanted * wanted).sum(axis=0), 1e-12), 1.0)
        yield f"{of[0]} is {factor[differ][0]:.4g} times what it must be{more}", wanted * factor


def _labels(term: Mapping[str, Any], golden: Golden, contract: Contract) -> list[str]:
    """Name each number of a term."""
    asked = next((part["names"] for part in contract["commands"] if part["name"] == term["command"]), ())
    if term["size"] == len(asked):
        return [*asked]
    if term["term"] == "last_action":
        return _driven(contract)
    if term["size"] == len(golden["joints"]):
        return golden["joints"].tolist()
    return [*"xyz"] if term["size"] == 3 else [f"number {index}" for index in range(term["size"])]


def _driven(contract: Contract) -> list[str]:
    return [*itertools.chain.from_iterable(part["joint_names"] for part in contract["actions"])]


def clipped(contract: Contract, outputs: np.ndarray) -> np.ndarray:
    """Bound outputs (..., A) as each action says."""
    clips = np.concatenate([np.full(len(part["joint_names"]), part["clip"]) for part in contract["actions"]])
    return np.clip(outputs, -clips, clips)


def _column(contract: Contract, key: str, golden: Golden) -> np.ndarray:
    """Give a number of each joint, in the golden order."""
    values = {joint["name"]: joint[key] for joint in contract["joints"]}
    return np.array([values.get(name, 0.0) for name in golden["joints"].tolist()])


def _rotated(vectors: np.ndarray, quats: np.ndarray) -> np.ndarray:
    """Rotate each vector by its quaternion."""
    turned = np.zeros(vectors.shape)
    for out, vector, quat in zip(turned, vectors, quats, strict=True):
        mujoco.mju_rotVecQuat(out, np.ascontiguousarray(vector), np.ascontiguousarray(quat))
    return turned
