"""Isaac Gym, NVIDIA's legacy simulator, behind the Physics protocol: for people with assets and policies on it.

Its binaries load in Python 3.6 to 3.8 alone, so it runs in a process of its own; a control step is one round trip through shared
memory.  What differs from MuJoCo is converted here: quaternions xyzw, velocities of centres of mass in the world, the importer's
order of joints and links.  The robot is the page's own model, handed over as a URDF.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from embodied_rl.config.page import PhysicsSettings
from embodied_rl.errors import UserError
from embodied_rl.machine import cores
from embodied_rl.physics.isaacgym_model import (
    FIELDS,
    collision_filters,
    contact_geoms,
    drive_modes,
    ground_friction,
    ground_of,
    lacking,
    late,
    linkage_of,
    order_of,
    sensed_sets,
)
from embodied_rl.physics.isaacgym_process import START_S, STEP_S, Worker
from embodied_rl.physics.protocol import Controller
from embodied_rl.physics.tensors import TensorPhysics
from embodied_rl.physics.urdf_writer import effort_limit, name_of
from embodied_rl.rotations import rotate, rotate_inverse
from embodied_rl.scene import Scene

log = logging.getLogger("embodied_rl")

#: A link touches something where the contact forces on it sum up to more [N]; legged_gym's (BSD-3-Clause, legged_robot.py).
_TOUCHING = 1.0


class IsaacGymPhysics(TensorPhysics):
    """The `isaacgym` engine.

    Args:
        scene: the model, the meaning of its sensors, and the frames to track.
        num_envs: how many simulations.
        settings: the page's `physics` section.
        device: where they live.
        compiler: wraps what surrounds the substeps, `torch.compile` or the identity.

    Raises:
        UserError: there is no Isaac Gym, or the model has what it lacks.
    """

    name = "isaacgym"

    def __init__(
        self, scene: Scene, num_envs: int, settings: PhysicsSettings, device: torch.device, compiler: Callable = lambda f: f
    ) -> None:
        model = scene.model
        for line in lacking(model):
            log.warning("physics.engine: isaacgym: %s", line)
        self._rows = sensed_sets(scene)
        self._linkage = linkage_of(scene)
        self._modes, self._filters = drive_modes(model), collision_filters(model, self._linkage)
        self._built = self._told = self._pinned = False
        self._shared_numbers: dict[str, Tensor] = {}
        self._changed: dict[str, Tensor] = {}
        self._written = torch.ones(num_envs, dtype=torch.bool, device=device)
        self._centre = torch.zeros(num_envs, 3, device=device)
        # what of a control is the drive's target, where it is not all
        self._share = torch.ones(num_envs, model.nu, device=device) if "velocity" in self._modes else None
        self._worker = Worker()
        try:
            self._load(scene, settings, device)
            self._arrays = self._worker.share(self._layout(num_envs, settings.decimation))
            self._shared = {name: torch.from_numpy(array) for name, array in self._arrays.items()}
            self._pin(device)
            self._arrays["watched"][:] = self._watched
            for kind, fields in FIELDS.items():
                self._fill(kind, np.arange(num_envs), {field: getattr(model, field)[None] for field in fields})
            super().__init__(
                scene,
                settings.decimation,
                {name: torch.zeros(num_envs, size, device=device) for name, size in (("qpos", model.nq), ("qvel", model.nv))},
                torch.zeros(num_envs, model.nu, device=device),
                torch.zeros(num_envs, model.nsensordata, device=device),
                torch.zeros(num_envs, model.nu, device=device),
                compiler,
            )
        except BaseException:
            self.close()
            raise
        self._from_world, self._drive = compiler(_from_world), compiler(_drive)

    # ------------------------------------------------------------------------------------------------------- the protocol

    def step(self, ctrl: Tensor, controller: Controller | None = None) -> None:
        if controller is not None or (ctrl.dim() == 2 and self._touchdowns is None):
            super().step(ctrl, controller)
        else:
            self._step_whole(ctrl)
        self._written |= self.unstable

    def _step_whole(self, ctrl: Tensor) -> None:
        """Take a step whose substeps have controls, or contacts to be looked at, of their own, in one round trip."""
        each = ctrl if ctrl.dim() == 3 else ctrl[:, None]
        self._remember(each.expand(-1, self._decimation, -1))
        self._ctrl.copy_(each[:, -1])
        self._ask(self._decimation, each, self._decimation if self._touchdowns is not None else 1)
        if self._touchdowns is not None:
            self._touchdowns.start()
            for substep in range(self._decimation):
                self._sense(substep)
                self._touchdowns.look(self._sensordata)
        else:
            self._sense(0)
        self._finish()

    def write(self, mask: Tensor, **fields: Tensor) -> None:
        known = {*self._state, *self._model_fields}
        if unknown := [name for name in fields if name not in known]:
            raise UserError(f"physics.engine: isaacgym cannot be told {unknown[0]}; it takes {', '.join(sorted(known))}")
        super().write(mask, **fields)
        if not self._state.keys().isdisjoint(fields):
            self._written |= mask
        for name in self._model_fields.keys() & fields:
            self._note(name, mask)

    def write_model(self, mask: Tensor, field: str, columns: Tensor, values: Tensor) -> None:
        super().write_model(mask, field, columns, values)
        self._note(field, mask)

    def reset(self, mask: Tensor) -> None:
        super().reset(mask)
        self._written |= mask

    def restore(self, rows: Tensor, state: dict[str, Tensor]) -> None:
        if not self._told:
            log.warning("physics.engine: isaacgym: this goes on, and not bit for bit: its solver's state cannot be kept")
            self._told = True
        super().restore(rows, state)
        mask = torch.zeros_like(self._written)
        mask[rows] = True
        self._written |= mask
        for name in self._model_fields:
            self._note(name, mask)

    def set_const(self, mask: Tensor) -> None:
        """Do nothing: what follows from masses and inertias, the simulator derives itself."""

    def drain_overflow(self) -> dict[str, int]:
        for line in self._worker.complaints():
            log.warning("physics.engine: isaacgym: it says: %s", line)
        return {}

    def close(self) -> None:
        self._worker.close()
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self._worker.memory.ctypes.data)  # pyright: ignore[reportOptionalMemberAccess]
            self._pinned = False

    def _pin(self, device: torch.device) -> None:
        """Let copies from the shared memory to a GPU go without another buffer."""
        if device.type != "cuda":
            return
        memory = self._worker.memory
        code = int(torch.cuda.cudart().cudaHostRegister(memory.ctypes.data, memory.nbytes, 0))  # pyright: ignore
        self._pinned = code == 0
        if code:
            log.warning(
                "physics.engine: isaacgym: the shared memory is not pinned (CUDA error %d): steps take a little longer", code
            )

    # --------------------------------------------------------------------------------------------------------- substeps

    def _advance(self, substeps: int, *, sense: bool = True) -> None:
        self._ask(substeps, self._ctrl[:, None], int(sense))
        if sense:
            self._sense(0)

    def _ask(self, substeps: int, each: Tensor, contacts: int) -> None:
        """Take some substeps over there, from our state where it was written, and take over the state that they lead to.

        Args:
            substeps: how many.
            each: controls (N, 1, nu), or (N, substeps, nu).
            contacts: of how many of the last substeps the contact forces are wanted.
        """
        shared, controls = self._shared, each.shape[1]
        fields = self._take_over_fields()
        if not self._built:
            self._build()
            fields = []
        if self._share is not None:  # after the gains that it follows from were taken over
            each = each * self._share[:, None]
        shared["control"][:controls].index_copy_(2, self._driven, each.transpose(0, 1).cpu())
        rows = self._written.nonzero()[:, 0]
        if written := len(rows):
            root, dof = _to_world(self.qpos[rows], self.qvel[rows], self._centre[rows], self._order[0])
            shared["rows"][:written] = rows.int()
            shared["root"][rows.cpu()] = root.cpu()
            shared["dof"][rows.cpu()] = dof.cpu()
            self._written.zero_()
        self._worker.ask(
            STEP_S, do="step", substeps=substeps, controls=controls, contacts=contacts, written=written, fields=fields
        )
        root, dof = shared["root"].to(self.device), shared["dof"].to(self.device)
        self._from_world(root, dof, self._centre, self._order[1], self.qpos, self.qvel)
        if self._reads_torque:
            gain, bias = self._numbers("actuator_gainprm"), self._numbers("actuator_biasprm")
            self._drive(self._ctrl, gain, bias, self._actuated, self._limit, self.qpos, self.qvel, self._actuator_force)

    def _sense(self, substep: int) -> None:
        """Write sensor data of the contact forces after a substep, 1 where a sensor's geoms touch something."""
        touching = (self._shared["contact"][substep].to(self.device) > _TOUCHING).float()
        self._sensordata.index_copy_(1, self._sensor_columns, touching[:, self._sensor_links])

    # ------------------------------------------------------------------------------------- the robot, and numbers of its own

    def _load(self, scene: Scene, settings: PhysicsSettings, device: torch.device) -> None:
        """Have the robot and its ground read, and find in which order the simulator has the robot's parts."""
        model = scene.model
        ground, samples = ground_of(model)
        with tempfile.TemporaryDirectory() as folder:
            shapes = self._linkage.write(Path(folder) / "robot.urdf")
            if samples is not None:
                samples.tofile(Path(folder) / "ground.int16")
            found = self._worker.ask(
                START_S,
                do="load",
                device=str(device) if device.type == "cpu" else f"cuda:{device.index or 0}",
                threads=settings.num_threads or cores(),
                dt=model.opt.timestep,
                gravity=model.opt.gravity.tolist(),
                folder=folder,
                file="robot.urdf",
                ground=ground,
                samples=None if samples is None else f"{folder}/ground.int16",
            )
        self._plane, self._friction = samples is None, ground["friction"]
        joints = [name_of(model, "joint", number) for number in range(1, model.njnt)]
        links = [link.name for link in self._linkage.links]
        dofs, parts = order_of("joints", joints, found["dofs"]), order_of("links", links, found["links"])
        counts = [count for _, count in found["shapes"]]
        if counts != [len(shapes[link]) for link in parts]:
            raise UserError(
                f"physics.engine: isaacgym: its importer made {counts} shapes of the links {found['links']}, and there are "
                f"{[len(shapes[link]) for link in parts]}"
            )
        self._parts = parts
        # of each of its shapes, the geom that it is of
        self._geoms = np.array([geom for link in parts for geom in shapes[link]], dtype=np.int64)
        tensor = lambda values: torch.tensor(values, dtype=torch.int64, device=device)  # noqa: E731
        self._order = tensor(dofs), tensor(np.argsort(dofs))
        self._dofs = np.array(dofs)
        joint_of = model.actuator_trnid[:, 0] - 1
        self._actuated, self._driven = tensor(joint_of), torch.tensor(np.argsort(dofs)[joint_of])
        self._limit = torch.tensor([effort_limit(model, joint + 1) for joint in joint_of], dtype=torch.float32, device=device)
        # sensors, by the link whose contact forces tell
        of = {geom: number for number, link in enumerate(self._linkage.links) for geom in link.geoms}
        watched = sorted({of[geom] for row in self._rows for geom in row})
        columns = [(column, watched.index(of[geom])) for column, geom in contact_geoms(scene).items()]
        self._watched = [parts.index(link) for link in watched]
        self._sensor_columns, self._sensor_links = tensor([c for c, _ in columns]), tensor([w for _, w in columns])

    def _layout(self, num_envs: int, steps: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        dofs, links, watched = len(self._dofs), len(self._parts), len(self._watched)
        robots: dict[str, tuple[int, ...]] = {
            **{"root": (13,), "dof": (dofs, 2), "mass": (links,), "centre": (links, 3), "inertia": (links, 3, 3)},
            **{"stiffness": (dofs,), "damping": (dofs,), "armature": (dofs,), "friction": (len(self._geoms),)},
        }
        layout = {name: ("float32", (num_envs, *shape)) for name, shape in robots.items()}
        layout |= {"control": ("float32", (steps, num_envs, dofs)), "contact": ("float32", (steps, num_envs, watched))}
        return layout | {"rows": ("int32", (num_envs,)), "changed": ("bool", (num_envs,)), "watched": ("int64", (watched,))}

    def _expanded(self, field: str) -> Tensor:
        if not any(field in fields for fields in FIELDS.values()):
            raise AttributeError(field)
        return torch.tensor(getattr(self.model, field), dtype=torch.float32, device=self.device).repeat(
            self.num_envs, *[1] * getattr(self.model, field).ndim
        )

    def _numbers(self, field: str) -> Tensor:
        """Return a field as it is, of each robot or of all."""
        if field not in self._model_fields:
            if field not in self._shared_numbers:
                self._shared_numbers[field] = torch.tensor(getattr(self.model, field), dtype=torch.float32, device=self.device)
            return self._shared_numbers[field]
        return self._model_fields[field]

    def _note(self, field: str, mask: Tensor) -> None:
        kind = next(kind for kind, fields in FIELDS.items() if field in fields)
        self._changed[kind] = self._changed[kind] | mask if kind in self._changed else mask.clone()

    def _take_over_fields(self) -> list[str]:
        """Write changed numbers into the shared memory, and name what they are.

        Raises:
            UserError: masses change after the first step, which the simulator does not take; or what a robot cannot have.
        """
        if not self._changed:
            return []
        everything = torch.zeros_like(self._written)
        kinds = []
        for kind, mask in self._changed.items():
            rows = mask.nonzero()[:, 0].cpu().numpy()
            if not len(rows):
                continue
            own = self._model_fields
            fields = {f: own[f][mask].cpu().double().numpy() if f in own else getattr(self.model, f)[None] for f in FIELDS[kind]}
            if kind == "mass" and self._built:  # a snapshot may say what is so already
                same = zip(self._inertials(fields, len(rows)), ("mass", "centre", "inertia"), strict=True)
                if not all(np.allclose(value, self._arrays[name][rows], rtol=1e-5, atol=1e-8) for value, name in same):
                    raise UserError(late(" and ".join(name for name in FIELDS["mass"] if name in own)))
                continue
            self._fill(kind, rows, fields)
            everything |= mask
            kinds.append(kind)
        self._changed.clear()
        self._shared["changed"].copy_(everything)
        return kinds

    def _inertials(self, fields: dict[str, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find masses, centres and inertias of the links of some robots, in the simulator's order."""
        full = [np.broadcast_to(fields[name], (count, *fields[name].shape[1:])) for name in FIELDS["mass"]]
        masses, centres, tensors = self._linkage.inertials(*full)
        return masses[:, self._parts], centres[:, self._parts], tensors[:, self._parts]

    def _fill(self, kind: str, rows: np.ndarray, fields: dict[str, np.ndarray]) -> None:
        """Compute properties of some robots, from fields (R, ...) or (1, ...) of the model, in the simulator's order."""
        arrays, model = self._arrays, self._linkage.model
        full = {name: np.broadcast_to(value, (len(rows), *value.shape[1:])) for name, value in fields.items()}
        if kind == "mass":
            masses, centres, tensors = self._inertials(fields, len(rows))
            arrays["mass"][rows], arrays["centre"][rows], arrays["inertia"][rows] = masses, centres, tensors
            base = self._parts.index(0)
            self._centre[torch.from_numpy(rows)] = torch.tensor(centres[:, base], dtype=torch.float32, device=self._centre.device)
        elif kind == "drive":
            stiffness, damping = np.zeros((len(rows), model.njnt - 1)), full["dof_damping"][:, 6:].copy()
            gain, bias = full["actuator_gainprm"], full["actuator_biasprm"]
            for actuator in range(model.nu):
                joint, mode = int(model.actuator_trnid[actuator, 0]) - 1, self._modes[int(model.actuator_trnid[actuator, 0]) - 1]
                wanted = -gain[:, actuator, 0]
                if not np.allclose(bias[:, actuator, 1 if mode == "position" else 2], wanted, rtol=1e-5):
                    raise UserError(
                        f"physics.engine: isaacgym: actuator {model.actuator(actuator).name!r} is no {mode} drive with "
                        "actuator_gainprm and actuator_biasprm that do not belong together"
                    )
                stiffness[:, joint] += gain[:, actuator, 0] * (mode == "position")
                damping[:, joint] += -bias[:, actuator, 2]
                if mode == "velocity" and self._share is not None:  # the joint's own damping is towards rest
                    share = gain[:, actuator, 0] / np.maximum(damping[:, joint], np.finfo(float).tiny)
                    self._share[torch.from_numpy(rows), actuator] = torch.tensor(share, dtype=torch.float32).to(
                        self._share.device
                    )
            arrays["stiffness"][rows], arrays["damping"][rows] = stiffness[:, self._dofs], damping[:, self._dofs]
            arrays["armature"][rows] = full["dof_armature"][:, 6:][:, self._dofs]
        else:
            # a contact has the mean of its two shapes' friction, as PhysX combines them unless told otherwise
            own = 2.0 * ground_friction(model, self._geoms, full["geom_friction"][:, self._geoms, 0]) - self._friction
            if (own < 0.0).any():
                least = 0.5 * (own.min() + self._friction)
                raise UserError(
                    f"physics.engine: isaacgym: a friction of {least:.3g} is less than half the ground's {self._friction:.3g}, "
                    "with which the mean is taken; draw no less, or take native"
                )
            arrays["friction"][rows] = own

    def _build(self) -> None:
        """Make the robots over there; what `expand` gave values of their own is known by now."""
        model, pose = self._linkage.model, np.array(self._linkage.model.qpos0[:7])
        self._worker.ask(
            START_S,
            do="build",
            pose=[*pose[:3].tolist(), *pose[[4, 5, 6, 3]].tolist()],
            spacing=float(max(2.0, 2.0 * model.stat.extent)) if self._plane else 0.0,
            filters=[self._filters[geom] for geom in self._geoms.tolist()],
            modes=[self._modes[dof] for dof in self._dofs.tolist()],
            effort=[effort_limit(model, int(dof) + 1) or float(np.finfo(np.float32).max) for dof in self._dofs],
        )
        self._built = True


def _to_world(qpos: Tensor, qvel: Tensor, centre: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Write MuJoCo's state as root states (N, 13) and joint states (N, D, 2) of the simulator.

    The root's velocity is that of its centre of mass, `centre` (N, 3) in its frame: PhysX's
    `PxArticulationReducedCoordinate::getRootLinearVelocity`.
    """
    quat = qpos[:, 3:7]
    spin, arm = rotate(quat[:, None], torch.stack((qvel[:, 3:6], centre), dim=1)).unbind(1)
    linear = qvel[:, :3] + torch.linalg.cross(spin, arm)
    root = torch.cat((qpos[:, :3], quat[:, 1:], quat[:, :1], linear, spin), dim=1)
    return root, torch.stack((qpos[:, 7:][:, order], qvel[:, 6:][:, order]), dim=-1)


def _from_world(root: Tensor, dof: Tensor, centre: Tensor, order: Tensor, qpos: Tensor, qvel: Tensor) -> None:
    """Write root and joint states of the simulator into MuJoCo's state, qpos (N, nq) and qvel (N, nv); see `_to_world`."""
    quat, spin = torch.cat((root[:, 6:7], root[:, 3:6]), dim=1), root[:, 10:13]
    linear = root[:, 7:10] - torch.linalg.cross(spin, rotate(quat, centre))
    dof = dof[:, order]
    qpos.copy_(torch.cat((root[:, :3], quat, dof[..., 0]), dim=1))
    qvel.copy_(torch.cat((linear, rotate_inverse(quat, spin), dof[..., 1]), dim=1))


def _drive(
    ctrl: Tensor, gain: Tensor, bias: Tensor, joints: Tensor, limit: Tensor, qpos: Tensor, qvel: Tensor, force: Tensor
) -> None:
    """Write what drives do at a state into the force (N, nu): gain ctrl + bias q + bias qd, within the limit (nu,)."""
    wanted = gain[..., 0] * ctrl + bias[..., 1] * qpos[:, joints + 7] + bias[..., 2] * qvel[:, joints + 6]
    force.copy_(torch.minimum(torch.maximum(wanted, -limit), limit))
