"""A pose to stand in: soles on one level, the centre of mass over them, legs bent as a Go2's; and how high that is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np

from embodied_rl.new.anatomy import Anatomy, Leg, limits, lowest, touching

#: How far the feet are under the hips, as a share of the legs' reach: a Go2's 0.3235 m of 0.411 m; two legs are straighter.
_BENT, _BENT_ON_TWO = 0.78, 0.93
#: Of a joint's range, kept free at either end.
_MARGIN = 0.05
#: Legs whose feet are farther than this from below the hips, as a share of their reach, are spread.
_SPREAD = 0.5
#: Cosine within which a joint pitches.
_PITCHES = 0.7
#: How far the rim of a wheel goes up and down as it turns, at most, as a share of the robot's height: a mesh has corners.
_ROUND = 0.02


@dataclass
class Stance:
    """A default pose."""

    joints: dict[str, float]
    """Positions [rad; m of a slide]."""
    base_height: float
    """Of the base with the feet just touching the ground [m]."""
    reach: float
    """From the hips down to the soles with the legs as straight as they go, or as legs reach that stand as low, bent as a Go2's;
    the mean of all [m]."""
    offset: float
    """Of the centre of mass from the middle of the feet [m]."""
    lift: float
    """How far a foot goes up or down at most when each joint of its leg turns, the mean of all [m/rad]."""


class Poser:
    """Finds poses of a robot whose base stands still in the pose of the file."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy, self.model = anatomy, anatomy.model
        self.data = mujoco.MjData(self.model)
        self.address = {name: int(self.model.joint(name).qposadr[0]) for name in anatomy.joints}
        self.limits = limits(self.model, anatomy.partners, anatomy.signs)
        self.neutral = {name: float(np.clip(self.model.qpos0[self.address[name]], *self.limits[name])) for name in anatomy.joints}
        #: with limbs that the file's pose folds up stretched down
        self.straight = self.neutral | anatomy.unfolded
        self.bent = _BENT if len(anatomy.legs) > 2 else _BENT_ON_TWO
        self._set(self.neutral)
        self.hips = [self._hip(leg) for leg in anatomy.legs]
        self.soles = [self._axis_up(leg) for leg in anatomy.legs]
        self.pitching = {name for name in anatomy.joints if abs(self.data.joint(name).xaxis[1]) > _PITCHES}
        self._set(self.straight)
        self.under = [self._middle(leg) for leg in anatomy.legs]
        self._set(self.neutral)
        self.reach = [self._reach(leg, hip) for leg, hip in zip(anatomy.legs, self.hips, strict=True)]
        self.levels = [self._level(*one) for one in zip(anatomy.legs, self.hips, self.under, self.reach, strict=True)]

    def wheels(self) -> list[str]:
        """Name the last joints of legs whose lowest point stays as high as it is wherever their joints are."""
        draw, still = np.random.default_rng(0), []
        for leg in self.anatomy.legs:
            heights = []
            for _ in range(20):
                turned = {
                    name: low + draw.random() * (high - low) for name, (low, high) in self.limits.items() if name in leg.joints
                }
                self._set(self.neutral | turned)
                heights.append(self._low(leg))
            if np.ptp(heights) < _ROUND * self.anatomy.height:
                still.append(leg.joints[-1])
        return still

    def describe(self, joints: dict[str, float]) -> Stance:
        """Measure a pose, rounded and made its own mirror image."""
        pose = {name: self._rounded(name, joints.get(name, self.neutral[name])) for name in self.anatomy.joints}
        for name, partner in self.anatomy.partners.items():
            if name == partner:
                pose[name] = pose[name] if self.anatomy.signs[name] > 0.0 else 0.0
            elif self.anatomy.joints.index(name) < self.anatomy.joints.index(partner):
                pose[partner] = self.anatomy.signs[name] * pose[name] + 0.0
        pose |= self._following(pose)
        self._set(pose)
        base = float(self.data.xpos[self.anatomy.base, 2])
        ground = min(self._low(leg) for leg in self.anatomy.legs)
        # legs that stand lower than bent ones, in a keyframe or as a spider's, swing as shorter ones
        reach = min(float(np.mean(self.reach)), float(np.mean([hip[2] for hip in self.hips]) - ground) / self.bent)
        offset = float(np.linalg.norm(self._off_centre()))
        return Stance(
            pose, round(base - ground, 4), reach, offset, float(np.mean([self._lift(leg) for leg in self.anatomy.legs]))
        )

    def _rounded(self, name: str, position: float) -> float:
        """Give a position to three figures after the point, or more where the joint's range asks for them."""
        low, high = self.limits[name]
        position = float(np.clip(position, low, high))
        return next((near for digits in range(3, 16) if low <= (near := round(position, digits) + 0.0) <= high), position)

    def solve(self) -> Stance:
        """Bend the legs until the base is low enough, feet level under the hips and all of it over the feet."""
        level = float(np.mean(self.levels))  # one for all feet, whatever height their hips have
        pose, shift = dict(self.neutral), np.zeros(2)
        for again in range(6):
            for index, leg in enumerate(self.anatomy.legs):
                partner = self.anatomy.partners.get(leg.joints[-1])
                if partner in [name for done in self.anatomy.legs[:index] for name in done.joints]:
                    for name in leg.joints:
                        other = self.anatomy.partners[name]
                        pose[name] = self.anatomy.signs[other] * pose[other]
                    continue
                starts = [np.array([pose[name] for name in leg.joints])] if again else self._starts(leg)
                pose |= self._bend(leg, np.array([*(self.under[index] + shift), level]), pose, self.soles[index], starts)
            self._set(pose)
            off = self._off_centre()
            shift += off * (1.0, 0.0 if self.anatomy.partners else 1.0)
            if np.linalg.norm(off) < 1e-4:
                break
        return self.describe(pose)

    def _bend(
        self, leg: Leg, target: np.ndarray, pose: dict[str, float], up: np.ndarray, starts: list[np.ndarray]
    ) -> dict[str, float]:
        """Bring a leg's sole to a place [m, the file's world], level if it can, from the best of these poses; its joints."""
        names = leg.joints
        bounds = np.array([_inner(*self.limits[name]) for name in names])
        neutral = np.clip([self.straight[name] for name in names], *bounds.T)
        scale = float(np.mean(self.reach))
        # what does not pitch has no part in bending a leg
        pull = np.array([0.03 if name in self.pitching else 0.3 for name in names])

        def residual(values: np.ndarray) -> np.ndarray:
            self._set(pose | dict(zip(names, map(float, values), strict=True)))
            place = [*self._middle(leg), self._low(leg)]
            tilt = self.data.xmat[leg.body].reshape(3, 3) @ up
            parts = [10.0 * (np.array(place) - target) / scale, pull * (values - neutral)]
            if leg.flat and len(names) > 3:
                parts.append(3.0 * tilt[:2])
            if self.model.neq:
                mujoco.mj_fwdPosition(self.model, self.data)
                parts.append(10.0 * self.data.efc_pos[: self.data.ne] / scale)
            return np.concatenate(parts)

        best, least = neutral, math.inf
        for start in starts:
            values, cost = _least_squares(residual, np.clip(start, *bounds.T), bounds)
            if cost < 0.95 * least - 1e-9:  # the first of equals
                best, least = values, cost
        return dict(zip(names, map(float, best), strict=True))

    def _starts(self, leg: Leg) -> list[np.ndarray]:
        """Knee backward and forward, in this order for four legs, and as the file has it."""
        self._set(self.neutral)
        bend = math.acos(self.bent)
        first = 1.0 if len(self.anatomy.legs) > 2 else -1.0
        starts = []
        for way in (first, -first):
            start, turns = [], iter((way * bend, -2.0 * way * bend, way * bend))
            for name in leg.joints:
                turn = next(turns, 0.0) * np.sign(self.data.joint(name).xaxis[1]) if name in self.pitching else self.neutral[name]
                start.append(float(turn + self.anatomy.unfolded.get(name, 0.0) * (name in self.pitching)))
            starts.append(np.array(start))
        return [*starts, np.array([self.straight[name] for name in leg.joints])]

    def _reach(self, leg: Leg, hip: np.ndarray) -> float:
        """Give how far under the hip the sole can be [m]: a search that narrows on the best."""
        draw = np.random.default_rng(0)
        names = [name for name in leg.joints if name in self.pitching] or leg.joints
        bounds, up = np.array([self.limits[name] for name in names]), self._axis_up(leg)
        best, least, lowest_sole = np.array([self.neutral[name] for name in names]), math.inf, 0.0
        for width in np.repeat([1.0, 0.3, 0.1, 0.03, 0.01, 0.003], 60):
            values = np.clip(best + width * draw.standard_normal(len(best)), *bounds.T)
            self._set(self.neutral | dict(zip(names, map(float, values), strict=True)))
            low = self._low(leg)
            # a flat foot does not stand on its toes
            tilt = float(np.linalg.norm((self.data.xmat[leg.body].reshape(3, 3) @ up)[:2])) if leg.flat else 0.0
            if low + tilt * self.anatomy.height < least:
                best, least, lowest_sole = values, low + tilt * self.anatomy.height, low
        self._set(self.neutral)
        return float(hip[2] - lowest_sole)

    def _level(self, leg: Leg, hip: np.ndarray, under: np.ndarray, reach: float) -> float:
        """Give the height of a leg's sole [m], and bring the place of the foot under the hip."""
        if np.linalg.norm(under - hip[:2]) > _SPREAD * reach:  # a spider, whose feet stay where they are
            return self._low(leg)
        under[0] = hip[0]
        return float(hip[2] - self.bent * reach)

    def _hip(self, leg: Leg) -> np.ndarray:
        """Find where the leg swings: at its first joint that pitches, else at its first."""
        pitching = [name for name in leg.joints if abs(self.data.joint(name).xaxis[1]) > _PITCHES]
        return np.array(self.data.joint((pitching or leg.joints)[0]).xanchor)

    def _axis_up(self, leg: Leg) -> np.ndarray:
        """Give the vertical of the file's pose in the frame of the foot, where a flat sole lies level."""
        return self.data.xmat[leg.body].reshape(3, 3).T[:, 2].copy()

    def _low(self, leg: Leg) -> float:
        return min(lowest(self.model, self.data, geom) for geom in leg.geoms)

    def _following(self, pose: dict[str, float]) -> dict[str, float]:
        """Give the positions of joints that an equality constraint ties to another's, as a URDF's mimic does, or to a number."""
        model, found = self.model, {}
        for index in range(model.neq):
            if int(model.eq_type[index]) == int(mujoco.mjtEq.mjEQ_JOINT) and model.eq_active0[index]:
                name, other = model.joint(int(model.eq_obj1id[index])).name, int(model.eq_obj2id[index])
                moved = 0.0
                if other >= 0:
                    moved = (pose | found)[model.joint(other).name] - model.qpos0[model.jnt_qposadr[other]]
                tied = model.qpos0[self.address[name]] + np.polynomial.polynomial.polyval(moved, model.eq_data[index, :5])
                found[name] = round(float(tied), 5) + 0.0
        return found

    def _lift(self, leg: Leg) -> float:
        """Give how far a foot goes up or down when each joint of its leg turns [m/rad]."""
        turn, jacobian = self.data.xmat[leg.body].reshape(3, 3), np.zeros((3, self.model.nv))
        foot = self.data.xpos[leg.body] + turn @ leg.place
        mujoco.mj_jac(self.model, self.data, jacobian, None, foot, leg.body)
        return float(sum(abs(jacobian[2, self.model.joint(name).dofadr[0]]) for name in leg.joints))

    def _middle(self, leg: Leg) -> np.ndarray:
        """Give the middle of what touches the ground, x and y."""
        if not leg.flat:
            return self.data.geom_xpos[leg.geoms].mean(axis=0)[:2]
        points = np.concatenate([touching(self.model, self.data, geom, math.inf)[:, :2] for geom in leg.geoms])
        return (points.min(axis=0) + points.max(axis=0)) / 2.0

    def _off_centre(self) -> np.ndarray:
        """Give where the centre of mass is, from the middle of all feet, x and y."""
        mujoco.mj_comPos(self.model, self.data)
        feet = np.mean([self._middle(leg) for leg in self.anatomy.legs], axis=0)
        return self.data.subtree_com[self.anatomy.base, :2] - feet

    def _set(self, pose: dict[str, float]) -> None:
        self.data.qpos[:] = self.model.qpos0
        for name, position in pose.items():
            self.data.qpos[self.address[name]] = position
        mujoco.mj_kinematics(self.model, self.data)


def _inner(low: float, high: float) -> tuple[float, float]:
    return low + _MARGIN * (high - low), high - _MARGIN * (high - low)


def _least_squares(
    residual: Callable[[np.ndarray], np.ndarray], start: np.ndarray, bounds: np.ndarray
) -> tuple[np.ndarray, float]:
    """Minimize a sum of squares within bounds by Levenberg and Marquardt's rule, with differences for derivatives."""
    values, damping = start.astype(float), 1e-3
    now = residual(values)
    for _ in range(60):
        steps = np.where(values + 1e-5 > bounds[:, 1], -1e-5, 1e-5)
        slope = np.stack(
            [(residual(values + step * unit) - now) / step for step, unit in zip(steps, np.eye(len(values)), strict=True)], 1
        )
        fixed = ((values <= bounds[:, 0]) & (slope.T @ now > 0.0)) | ((values >= bounds[:, 1]) & (slope.T @ now < 0.0))
        slope[:, fixed] = 0.0
        move = -np.linalg.solve(slope.T @ slope + damping * np.eye(len(values)), slope.T @ now)
        tried = np.clip(values + move, *bounds.T)
        then = residual(tried)
        if then @ then < now @ now:
            done = now @ now - then @ then < 1e-12
            values, now, damping = tried, then, max(damping / 3.0, 1e-9)
            if done:
                break
        else:
            damping *= 4.0
            if damping > 1e6:
                break
    return values, float(now @ now)
