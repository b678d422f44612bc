"""MjSpec assembly: robot + terrain + position actuators + the sensors that terms ask for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import mujoco
import numpy as np
import torch

from embodied_rl.config.page import PhysicsSettings
from embodied_rl.errors import UserError
from embodied_rl.physics.kinematics import Frame, free_body, free_joint
from embodied_rl.robot import RobotSpec
from embodied_rl.scene import contacts
from embodied_rl.scene.feet import Feet, footprint
from embodied_rl.scene.finite import check_finite
from embodied_rl.scene.looks import ADDED, dress
from embodied_rl.scene.plain import PLAIN
from embodied_rl.scene.pose import check_pose, default_qpos
from embodied_rl.scene.terrain import FlatTerrain, Terrain

#: mjtConDataField bits and the netforce reduction of the contact sensor (MuJoCo XML reference, sensor/contact).
_FOUND = 1
#: Needs that the scene and the engine know how to serve; `contact:<group>` aside.
NEEDS = ("foot_contact", "foot_touchdown", "foot_frames", "foot_orientation", "joint_torque")
#: Kinds of control: what a joint's number in `ctrl` is.
_CONTROLS = ("position", "velocity")
_DISABLED = (
    # a blown-up state must be seen, not silently replaced by the default one
    mujoco.mjtDisableBit.mjDSBL_AUTORESET,
)
#: What a file may have switched off that pages count on.
ENABLED = (
    mujoco.mjtDisableBit.mjDSBL_CONSTRAINT,
    mujoco.mjtDisableBit.mjDSBL_CONTACT,
    mujoco.mjtDisableBit.mjDSBL_ACTUATION,
    mujoco.mjtDisableBit.mjDSBL_SENSOR,
)
#: What a file may have switched on that does not hold here.
NOT_KEPT = (
    mujoco.mjtEnableBit.mjENBL_OVERRIDE,  # of each contact its geoms' own numbers hold
    # what they remember is no part of a robot's state
    mujoco.mjtEnableBit.mjENBL_SLEEP,
    mujoco.mjtEnableBit.mjENBL_IPC,
)


class SceneError(UserError):
    """A page asks the scene for what its robot or collision set does not have; one line.

    Args:
        message: the line.
        need: what a term asked for, of a message that begins with "a term".
    """

    def __init__(self, message: str, need: str = "") -> None:
        super().__init__(message)
        self.need = need


@dataclass(frozen=True)
class Root:
    """Where the free joint of the robot's base stands in the state."""

    qpos: int
    """Address of its seven positions: the base's position [m], then its orientation, wxyz."""
    qvel: int
    """Address of its six velocities: linear in the world [m/s], then angular in the base's frame [rad/s]."""


@dataclass(frozen=True)
class Scene:
    """A compiled page: what an engine needs to run it and a viewer to show it."""

    robot: RobotSpec
    model: mujoco.MjModel
    """What is simulated: collision geoms only."""
    render_model: mujoco.MjModel
    """What is shown: the same joints, with looks, light and a floor."""
    terrain: Terrain
    sensors: dict[str, tuple[slice, tuple[int, ...]]]
    """Columns of sensordata and their shape, by meaning."""
    frames: tuple[Frame, ...]
    """What terms ask the kinematics of: the feet's sites, each named as its foot."""
    frame_orientation: bool
    """Whether a term, or the undersides of the feet, need to know how the frames are turned."""
    joint_torque: bool
    """Whether a term reads the actuators' torques."""
    foot_touchdown: bool
    """Whether somebody reads how often the contacts of feet begin."""
    velocity_joints: frozenset[str]
    """Joints whose control is the velocity; that of the others is the position."""
    qpos_address: tuple[int, ...]
    qvel_address: tuple[int, ...]
    """Where the robot's joints stand in qpos and qvel, in robot.yaml's order."""
    foot_geoms: tuple[int, ...]
    """All collision geoms of the feet."""
    first_foot_geoms: tuple[int, ...]
    """One of each foot."""
    base_body: int
    root: Root | None
    """The base's free joint, wherever it stands; None where the base does not move freely."""

    def on(self, device: torch.device) -> Scene:
        """Return the scene with its ground as terms on a device ask for it."""
        return replace(self, terrain=self.terrain.on(device))

    def default_qpos(self) -> np.ndarray:
        """Give the pose that episodes start from, (nq,)."""
        return default_qpos(self.model, self.robot, None if self.root is None else self.root.qpos)

    def footprint(self) -> np.ndarray:
        """Give the corners and middles of the feet in the default pose, from the base in the frame of its heading, (P, 2)."""
        return footprint(self.model, self.default_qpos(), self.base_body, [foot.geoms for foot in self.robot.feet])

    def default_feet(self) -> tuple[np.ndarray, np.ndarray]:
        """Give where feet are in the default pose, from the base along its axes [m], and the vertical in theirs, (F, 3) each."""
        data = mujoco.MjData(self.model)
        data.qpos[:] = self.default_qpos()
        mujoco.mj_kinematics(self.model, data)
        base, sites = data.body(self.base_body), [data.site(foot.site) for foot in self.robot.feet]
        places = [base.xmat.reshape(3, 3).T @ (site.xpos - base.xpos) for site in sites]
        return np.reshape(places, (-1, 3)), np.reshape([site.xmat[6:] for site in sites], (-1, 3))

    def feet(self, device: torch.device) -> Feet:
        """Make what knows the undersides of the feet, on a device.

        Raises:
            UserError: a foot's geom has no lowest point; one line.
        """
        return Feet(self.model, self.robot, device)


def build_scene(
    robot: RobotSpec,
    *,
    collisions: str,
    self_collision: str = "file",
    physics: PhysicsSettings,
    needs: Iterable[str] = (),
    controls: Mapping[str, str] | None = None,
    dry_friction: bool = True,
    terrain: Terrain | None = None,
) -> Scene:
    """Compile the model.

    Args:
        robot: the robot.
        collisions: `feet`: only the feet touch the ground; `full`: every collision geom of the robot.
        self_collision: what of the robot meets itself: `file`, `off`, `pairs` or `all`, as the page's `scene.self_collision`.
        physics: solver settings of the page.
        needs: what terms ask to be measured, see `embodied_rl.mdp.term.Need`.
        controls: what a joint's control is, by its name: its "position", as it is of joints without an entry, with
            torque = stiffness (target - q) - damping qd, or its "velocity", with torque = damping (target - qd); both are
            clipped to the motor's limit.
        dry_friction: keep the dry friction of the robot's joints.
        terrain: the ground; None: a plane.

    Raises:
        SceneError: a need that this robot or collision set cannot serve, a control that is unknown, or a base that hangs on
            the body with the free joint, or is moved by another one.
        UserError: the feet are asked for, and one has no lowest point; the robot cannot be in its default pose, or its file
            says of contacts what the page's ground cannot have; a number of the model is none.
    """
    needs = set(needs)
    _check(needs, robot)
    needs |= {"foot_frames"} if "foot_orientation" in needs else set()
    needs |= {"foot_contact"} if "foot_touchdown" in needs else set()
    controls = _checked(controls or {}, robot)
    terrain = terrain or FlatTerrain()
    spec = _robot_on_plane(robot, physics, controls, dry_friction)
    _fix_inertias(spec, robot)
    _let_collide(spec, robot, collisions, self_collision)
    contacts.strip(spec)
    for light in list(spec.lights):
        spec.delete(light)
    sensors = _add_sensors(spec, robot, needs, collisions)
    model = robot.compile(spec)
    joints = [model.joint(name) for name in robot.joint_names]
    check_finite(model, robot.model_path)
    root = _root(model, robot)
    check_pose(model, robot, None if root is None else root.qpos)  # on the plane: other ground is nowhere at z = 0
    shown = _with_looks(robot, physics, controls, dry_friction)
    if not isinstance(terrain, FlatTerrain):
        for one in (spec, shown):
            terrain.add_to(one)
            one.stat.extent, one.stat.center = model.stat.extent, model.stat.center  # films' shadows are as sharp as on a plane
        model = spec.compile()
    feet = robot.feet if "foot_frames" in needs else ()
    turning = bool(feet) and ("foot_orientation" in needs or Feet(model, robot, torch.device("cpu")).needs_orientation)
    return Scene(
        robot=robot,
        model=model,
        render_model=shown.compile(),
        terrain=terrain,
        sensors=sensors,
        frames=tuple(site_frame(model, foot.name, foot.site) for foot in feet),
        frame_orientation=turning,
        joint_torque="joint_torque" in needs,
        foot_touchdown="foot_touchdown" in needs,
        velocity_joints=frozenset(name for name, kind in controls.items() if kind == "velocity"),
        qpos_address=tuple(int(joint.qposadr[0]) for joint in joints),
        qvel_address=tuple(int(joint.dofadr[0]) for joint in joints),
        foot_geoms=tuple(model.geom(name).id for name in robot.foot_geoms),
        first_foot_geoms=tuple(model.geom(foot.geoms[0]).id for foot in robot.feet),
        base_body=model.body(robot.base).id,
        root=root,
    )


def site_frame(model: mujoco.MjModel, name: str, site: str) -> Frame:
    """Make the frame of a site, under another name."""
    found = model.site(site)
    return Frame(name, int(found.bodyid[0]), np.array(found.pos), np.array(found.quat))


def _root(model: mujoco.MjModel, robot: RobotSpec) -> Root | None:
    base = model.body(robot.base).id
    address, carrier = free_joint(model, base), free_body(model, base)
    if address is not None:
        return Root(*address)
    if carrier is not None:
        name = model.body(carrier).name
        raise SceneError(
            f"{robot.folder / 'robot.yaml'}: base: {robot.base!r} hangs on {name!r}, which has the free joint; write base: {name}"
        )
    moved = int(model.body_weldid[base])
    if model.body_jntnum[moved]:  # else it would be taken for where the file has it
        joint = model.joint(int(model.body_jntadr[moved])).name
        raise SceneError(
            f"{robot.folder / 'robot.yaml'}: base: {robot.base!r} is moved by the joint {joint!r}, and a base has a free "
            "joint or none: name the body that the robot is mounted on, or give this one a freejoint"
        )
    return None


def _checked(controls: Mapping[str, str], robot: RobotSpec) -> Mapping[str, str]:
    """Compare the controls with the robot's joints and the kinds that there are."""
    for name, kind in controls.items():
        for what, given, allowed in (("joint", name, robot.joint_names), ("kind", kind, _CONTROLS)):
            if given not in allowed:
                near = difflib.get_close_matches(given, allowed, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(allowed)}"
                raise SceneError(f"the controls of {robot.name}: {name}: {kind}: no {what} {given!r}; {hint}")
    return controls


def _check(needs: set[str], robot: RobotSpec) -> None:
    page = robot.folder / "robot.yaml"
    for need in sorted(needs):
        kind, _, group = need.partition(":")
        allowed = [*NEEDS, *(f"contact:{name}" for name in robot.bodies)]
        if need not in allowed:
            near = difflib.get_close_matches(need, allowed, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(allowed)}"
            what = f"bodies: {page} has no group {group!r}" if kind == "contact" else f"needs: {need!r} is unknown"
            raise SceneError(f"a term reads {need!r}: {what}; {hint}", need)
        if kind.startswith("foot_") and not robot.feet:
            raise SceneError(f"{page}: feet: none named, but a term of the page reads {need!r}; name them")


def _fix_inertias(spec: mujoco.MjSpec, robot: RobotSpec) -> None:
    """Write down the masses that MuJoCo would infer, from geoms or a total, so that a body keeps its mass when geoms go.

    Raises:
        RobotError: MuJoCo cannot compile the robot; one line.
    """
    twin = spec.copy()  # MuJoCo takes geoms out of what it has compiled twenty times slower
    model, inference = robot.compile(twin), mujoco.mjtInertiaFromGeom
    scaled = spec.compiler.settotalmass > 0.0
    for body, its in zip(spec.bodies, twin.bodies, strict=True):
        inferred = not body.explicitinertial or spec.compiler.inertiafromgeom == inference.mjINERTIAFROMGEOM_TRUE
        if (inferred or scaled) and its.id != 0:
            known = model.body(its.id)
            body.mass, body.ipos, body.iquat, body.inertia = known.mass[0], known.ipos, known.iquat, known.inertia
            body.fullinertia, body.explicitinertial = np.full(6, np.nan), True
    spec.compiler.inertiafromgeom, spec.compiler.settotalmass = inference.mjINERTIAFROMGEOM_FALSE, -1.0


def _check_gravity(spec: mujoco.MjSpec, robot: RobotSpec) -> None:
    """Refuse gravity that does not point down, where terms and the ground have it."""
    across, off = np.any(spec.option.gravity[:2]), int(mujoco.mjtDisableBit.mjDSBL_GRAVITY) & spec.option.disableflags
    if across or off or spec.option.gravity[2] >= 0.0:
        given = "switched off" if off else " ".join(f"{one:g}" for one in spec.option.gravity)
        raise SceneError(f'{robot.model_path}: option gravity: {given}; z points up here: write gravity="0 0 -9.81"')


def _robot_on_plane(robot: RobotSpec, physics: PhysicsSettings, controls: Mapping[str, str], dry_friction: bool) -> mujoco.MjSpec:
    spec = robot.mjspec()
    _check_gravity(spec, robot)
    contacts.clear(spec, robot)
    FlatTerrain().add_to(spec)
    contacts.meet(spec)
    for index, name in enumerate(robot.joint_names):
        if not dry_friction:
            spec.joint(name).frictionloss = 0.0
        add_motor(spec, robot, index, by_velocity=controls.get(name, "position") == "velocity")
    option = spec.option
    option.timestep = physics.dt
    option.integrator = getattr(mujoco.mjtIntegrator, f"mjINT_{physics.integrator.upper()}")
    option.solver = getattr(mujoco.mjtSolver, f"mjSOL_{physics.solver.upper()}")
    option.cone = getattr(mujoco.mjtCone, f"mjCONE_{physics.cone.upper()}")
    option.iterations, option.ls_iterations = physics.iterations, physics.ls_iterations
    option.impratio, option.tolerance = physics.impratio, physics.tolerance
    for bit in _DISABLED:
        option.disableflags |= int(bit)
    for bit in ENABLED:
        option.disableflags &= ~int(bit)
    for bit in NOT_KEPT:
        option.enableflags &= ~int(bit)
    option.disableactuator = 0
    return spec


def add_motor(spec: mujoco.MjSpec, robot: RobotSpec, index: int, *, by_velocity: bool) -> None:
    """Add the motor of a robot's joint, a servo of its position or velocity."""
    name, limit = robot.joint_names[index], robot.effort_limit[index]
    actuator = spec.add_actuator(PLAIN, name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    if by_velocity:
        # torque = kd (target - qd), clipped to the motor's limit
        actuator.set_to_velocity(kv=robot.damping[index])
    else:
        # torque = kp (target - q) - kd qd, likewise
        actuator.set_to_position(kp=robot.stiffness[index], kv=robot.damping[index])
    actuator.forcelimited, actuator.forcerange, actuator.ctrllimited = True, (-limit, limit), False


def _add_sensors(
    spec: mujoco.MjSpec, robot: RobotSpec, needs: set[str], collisions: str
) -> dict[str, tuple[slice, tuple[int, ...]]]:
    sensors: dict[str, tuple[slice, tuple[int, ...]]] = {}
    columns = 0
    feet = [list(foot.geoms) for foot in robot.feet]
    for need in sorted(needs):
        kind, _, group = need.partition(":")
        if kind == "foot_contact":
            geoms = feet
        elif kind == "contact":
            geoms = [_body_geoms(spec, robot, body, group, collisions) for body in robot.bodies[group]]
        else:
            continue
        width = max(len(row) for row in geoms)
        for row in geoms:
            for geom in (row + row[-1:] * width)[:width]:  # rows of one length: repeating a geom changes no maximum
                sensor = spec.add_sensor(type=mujoco.mjtSensor.mjSENS_CONTACT, objtype=mujoco.mjtObj.mjOBJ_GEOM, objname=geom)
                sensor.intprm[:3] = (_FOUND, 0, 1)
        shape = (len(geoms), width)
        sensors[need] = (slice(columns, columns + int(np.prod(shape))), shape)
        columns += int(np.prod(shape))
    return sensors


def _body_geoms(spec: mujoco.MjSpec, robot: RobotSpec, body: str, group: str, collisions: str) -> list[str]:
    """List the collision geoms of a body, its feet aside; unnamed ones get a name."""
    names = []
    for index, geom in enumerate(spec.body(body).geoms):
        if not geom.name:
            geom.name = f"{body}_collision_{index}"
            while sum(other.name == geom.name for other in spec.geoms) > 1:
                geom.name += "_"
        if geom.name not in robot.foot_geoms and contacts.collides(geom):
            names.append(geom.name)
    if not names:
        hint = "set scene.collisions: full" if collisions == "feet" else f"give {body} a collision geom in {robot.model_path}"
        message = f"a term reads the contacts of {group!r}, but {body!r} cannot touch anything: {hint}"
        raise SceneError(message, f"contact:{group}")
    return names


def whole_spec(
    robot: RobotSpec,
    *,
    collisions: str,
    self_collision: str = "file",
    physics: PhysicsSettings,
    controls: Mapping[str, str],
    dry_friction: bool,
) -> mujoco.MjSpec:
    """Assemble what `build_scene` compiles, with looks, without sensors, and the default pose as its one keyframe.

    Raises:
        SceneError: a control is unknown.
    """
    spec = _with_looks(robot, physics, _checked(controls, robot), dry_friction)
    _fix_inertias(spec, robot)
    _let_collide(spec, robot, collisions, self_collision)
    spec.add_key(name="default", qpos=_stance(robot.compile(spec), robot))
    return spec


def _let_collide(spec: mujoco.MjSpec, robot: RobotSpec, collisions: str, self_collision: str) -> None:
    """Let the robot meet the ground, and itself, as the page says."""
    bodies = contacts.movable(spec)
    if collisions == "feet":
        contacts.leave(spec, robot.foot_geoms, pairs=self_collision == "pairs")
    if self_collision != "file":
        contacts.part(spec, pairs=self_collision == "pairs")
    if self_collision == "all":
        contacts.meet_itself(spec, bodies)
        model = robot.compile(spec.copy())
        contacts.exclude_touching(spec, model, _stance(model, robot))


def _stance(model: mujoco.MjModel, robot: RobotSpec) -> np.ndarray:
    """Find the pose that episodes start from in a compiled model, (nq,)."""
    root = _root(model, robot)
    return default_qpos(model, robot, None if root is None else root.qpos)


def _with_looks(robot: RobotSpec, physics: PhysicsSettings, controls: Mapping[str, str], dry_friction: bool) -> mujoco.MjSpec:
    spec = _robot_on_plane(robot, physics, controls, dry_friction)
    taken = {one.name for one in (*spec.textures, *spec.materials, *spec.lights)}
    prefix = ""
    while taken.intersection(f"{prefix}{name}" for name in ADDED):
        prefix += "_"
    dress(spec, robot.base, "ground", prefix)
    return spec
