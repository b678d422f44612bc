"""A stand-in for the simulator: see README.md."""

import ctypes
import json
import os
import signal
from xml.etree import ElementTree

import numpy

UP_AXIS_Y, UP_AXIS_Z = 0, 1
SIM_PHYSX = 1
DOF_MODE_NONE, DOF_MODE_POS, DOF_MODE_VEL, DOF_MODE_EFFORT = 0, 1, 2, 3
CC_NEVER, CC_LAST_SUBSTEP, CC_ALL_SUBSTEPS = 0, 1, 2

DOF = numpy.dtype(
    [("hasLimits", "?"), ("lower", "<f4"), ("upper", "<f4"), ("driveMode", "<i4")]
    + [(name, "<f4") for name in ("velocity", "effort", "stiffness", "damping", "friction", "armature")]
)
#: Of the contacts that hold a base up [N/m, N s/m], and the inertia of a joint without armature [kg m^2].
STIFFNESS, DAMPING, LIGHT = 4000.0, 100.0, 0.02


class GymError(RuntimeError):
    pass


class Plain:
    """Attributes with defaults; another one is a mistake."""

    defaults = {}

    def __init__(self):
        for name, value in self.defaults.items():
            object.__setattr__(self, name, value() if isinstance(value, type) else value)

    def __setattr__(self, name, value):
        if name not in self.defaults:
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        object.__setattr__(self, name, value)


class Vec3:
    def __init__(self, x=0.0, y=0.0, z=0.0):
        self.x, self.y, self.z = float(x), float(y), float(z)


class Quat:
    def __init__(self, x=0.0, y=0.0, z=0.0, w=1.0):
        self.x, self.y, self.z, self.w = float(x), float(y), float(z), float(w)


class Mat33(Plain):
    defaults = {"x": Vec3, "y": Vec3, "z": Vec3}


class Transform(Plain):
    defaults = {"p": Vec3, "r": Quat}


class PhysXParams(Plain):
    defaults = dict(
        use_gpu=False, num_threads=0, solver_type=0, num_position_iterations=4, num_velocity_iterations=1, contact_offset=0.02,
        rest_offset=0.0, bounce_threshold_velocity=0.2, max_depenetration_velocity=100.0, default_buffer_size_multiplier=2.0,
        max_gpu_contact_pairs=1048576, contact_collection=CC_ALL_SUBSTEPS,
    )  # fmt: skip


class SimParams(Plain):
    defaults = dict(dt=1 / 60, substeps=2, up_axis=UP_AXIS_Y, gravity=Vec3, use_gpu_pipeline=False, physx=PhysXParams)


class PlaneParams(Plain):
    defaults = dict(normal=Vec3, static_friction=1.0, dynamic_friction=1.0, restitution=0.0, distance=0.0)


class HeightFieldParams(Plain):
    defaults = dict(
        nbRows=0, nbColumns=0, row_scale=1.0, column_scale=1.0, vertical_scale=1.0, transform=Transform, static_friction=1.0,
        dynamic_friction=1.0, restitution=0.0,
    )  # fmt: skip


class AssetOptions(Plain):
    defaults = dict(
        default_dof_drive_mode=DOF_MODE_NONE, collapse_fixed_joints=False, fix_base_link=False, disable_gravity=False,
        replace_cylinder_with_capsule=False, flip_visual_attachments=True, override_com=False, override_inertia=False,
        angular_damping=0.5, linear_damping=0.0, armature=0.0, thickness=0.02, max_angular_velocity=64.0,
        max_linear_velocity=1000.0, density=1000.0,
    )  # fmt: skip


class RigidBodyProperties(Plain):
    defaults = dict(mass=0.0, com=Vec3, inertia=Mat33, flags=0)


class RigidShapeProperties(Plain):
    defaults = dict(friction=1.0, rolling_friction=0.0, torsion_friction=0.0, restitution=0.0, filter=0)


class IndexRange:
    def __init__(self, start, count):
        self.start, self.count = start, count


class Tensor:
    """What gymtorch wraps and unwraps."""

    def __init__(self, array):
        self.array = array


class Asset:
    """A robot as the importer has it: joints and links depth first, children by their names, last first."""

    def __init__(self, path):
        root = ElementTree.parse(path).getroot()
        links = {one.get("name"): one for one in root.findall("link")}
        joints = {one.find("child").get("link"): one for one in root.findall("joint")}
        (base,) = set(links) - set(joints)
        numbers = lambda text: numpy.array([float(one) for one in text.split()])  # noqa: E731
        self.links, self.dofs, self.shapes, self.places, self.radii, self.inertials, self.limits = [], [], [], [], [], [], []

        def visit(name, place):
            link = links[name]
            self.links.append(name)
            collisions = link.findall("collision")
            self.shapes.append(len(collisions))
            ends = [numbers(one.find("origin").get("xyz")) for one in collisions]
            balls = [one.find("geometry/sphere") for one in collisions]
            self.places.append(place + (ends[0] if ends else 0.0))
            self.radii.append(float(balls[0].get("radius")) if balls and balls[0] is not None else 0.01)
            given = link.find("inertial")
            tensor = given.find("inertia")
            rows = [["ixx", "ixy", "ixz"], ["ixy", "iyy", "iyz"], ["ixz", "iyz", "izz"]]
            self.inertials.append(
                (
                    float(given.find("mass").get("value")),
                    numbers(given.find("origin").get("xyz")),
                    numpy.array([[float(tensor.get(key)) for key in row] for row in rows]),
                )
            )
            below = sorted((child for child, joint in joints.items() if joint.find("parent").get("link") == name), reverse=True)
            for child in below:
                joint = joints[child]
                if joint.get("type") != "fixed":
                    self.dofs.append(joint.get("name"))
                    limit = joint.find("limit")
                    self.limits.append((limit.get("lower"), limit.get("upper"), float(limit.get("effort"))))
                visit(child, place + numbers(joint.find("origin").get("xyz")))

        visit(base, numpy.zeros(3))


class Sim:
    """N robots, once `prepare_sim` was called."""

    def __init__(self, params):
        self.params, self.ground, self.prepared, self.robots = params, None, False, []
        self.set = set()  # setters that were called since the last step
        self.steps = 0
        self.calls = os.environ.get("ISAACGYM_STAND_IN_CALLS")
        self.fault = os.environ.get("ISAACGYM_STAND_IN_FAULT")
        self.still = bool(os.environ.get("ISAACGYM_STAND_IN_STILL"))
        self.in_world = bool(os.environ.get("ISAACGYM_STAND_IN_ORIGINS"))

    def note(self, name, **what):
        if self.calls:
            with open(self.calls, "a") as file:
                file.write(json.dumps(dict(what, call=name)) + "\n")


class Env:
    def __init__(self, sim, number, origin):
        self.sim, self.number, self.origin = sim, number, origin


class Robot:
    def __init__(self, asset, pose, group):
        self.asset, self.pose, self.group = asset, pose, group
        self.dof = numpy.zeros(len(asset.dofs), DOF)
        self.dof["driveMode"] = DOF_MODE_NONE
        self.dof["effort"] = [limit[2] for limit in asset.limits]
        self.bodies = [RigidBodyProperties() for _ in asset.links]
        for body, (mass, com, _) in zip(self.bodies, asset.inertials):
            body.mass, body.com = mass, Vec3(*com)
        self.shapes = [RigidShapeProperties() for _ in range(sum(asset.shapes))]


def acquire_gym():
    return Gym()


class Gym:
    # ------------------------------------------------------------------------------------------------------------ setting up

    def create_sim(self, compute, graphics, kind, params):
        if kind != SIM_PHYSX or params.up_axis != UP_AXIS_Z or params.use_gpu_pipeline or params.physx.use_gpu:
            return None  # it has no GPU
        return Sim(params)

    def add_ground(self, sim, params):
        sim.ground = lambda x, y: 0.0 * x
        sim.note("add_ground", friction=params.static_friction)

    def add_heightfield(self, sim, samples, params):
        if samples.dtype != numpy.int16 or samples.shape != (params.nbRows * params.nbColumns,):
            raise GymError(f"samples are {samples.dtype} {samples.shape}")
        heights = samples.reshape(params.nbRows, params.nbColumns) * params.vertical_scale
        at = params.transform.p

        def ground(x, y):
            row, column = (y - at.y) / params.row_scale, (x - at.x) / params.column_scale
            row = numpy.clip(numpy.nan_to_num(row), 0, params.nbRows - 1).astype(int)
            return heights[row, numpy.clip(numpy.nan_to_num(column), 0, params.nbColumns - 1).astype(int)] + at.z

        sim.ground = ground
        low, high = float(heights.min() + at.z), float(heights.max() + at.z)
        sim.note("add_heightfield", low=low, high=high, corner=[at.x, at.y], rows=params.nbRows, columns=params.nbColumns)

    def load_asset(self, sim, folder, file, options):
        if options.collapse_fixed_joints or options.fix_base_link:
            raise GymError("the worker keeps links, and bases free")
        asset = Asset(os.path.join(folder, file))
        sim.note("load_asset", links=asset.links)
        return asset

    def get_asset_dof_names(self, asset):
        return asset.dofs

    def get_asset_rigid_body_names(self, asset):
        return asset.links

    def get_asset_rigid_body_shape_indices(self, asset):
        starts = numpy.cumsum([0, *asset.shapes])
        return [IndexRange(int(start), count) for start, count in zip(starts, asset.shapes)]

    def create_env(self, sim, lower, upper, per_row):
        number = len(sim.robots)
        place = numpy.array([(number % per_row) * (upper.x - lower.x), (number // per_row) * (upper.y - lower.y), 0.0])
        return Env(sim, number, place)

    def create_actor(self, env, asset, pose, name, group=-1, filter=-1, segmentation=0):
        if env.sim.prepared:
            raise GymError("actors are created before prepare_sim")
        env.sim.robots.append((env, Robot(asset, pose, group)))
        return 0

    def _robot(self, env, actor):
        assert actor == 0
        return env.sim.robots[env.number][1]

    def get_actor_dof_properties(self, env, actor):
        return self._robot(env, actor).dof.copy()

    def set_actor_dof_properties(self, env, actor, properties):
        if properties.dtype != DOF:
            raise GymError("DOF properties of another kind")
        self._robot(env, actor).dof = properties.copy()
        self._changed(env.sim)
        env.sim.note("set_actor_dof_properties", env=env.number, **{name: properties[name].tolist() for name in DOF.names})
        return True

    def get_actor_rigid_body_properties(self, env, actor):
        return self._robot(env, actor).bodies

    def set_actor_rigid_body_properties(self, env, actor, properties, recomputeInertia=False):  # noqa: N803
        if env.sim.prepared:
            raise GymError("masses are set before prepare_sim")
        masses = [one.mass for one in properties]
        lines = lambda one: [[line.x, line.y, line.z] for line in (one.inertia.x, one.inertia.y, one.inertia.z)]  # noqa: E731
        env.sim.note(
            "set_actor_rigid_body_properties",
            env=env.number,
            mass=masses,
            com=[[one.com.x, one.com.y, one.com.z] for one in properties],
            inertia=[lines(one) for one in properties],
        )
        return True

    def get_actor_rigid_shape_properties(self, env, actor):
        return self._robot(env, actor).shapes

    def set_actor_rigid_shape_properties(self, env, actor, properties):
        friction, filters = [one.friction for one in properties], [one.filter for one in properties]
        env.sim.note("set_actor_rigid_shape_properties", env=env.number, friction=friction, filter=filters)
        return True

    def prepare_sim(self, sim):
        count, asset = len(sim.robots), sim.robots[0][1].asset
        sim.asset, sim.prepared = asset, True
        sim.origins = numpy.array([env.origin for env, _ in sim.robots], numpy.float32) * sim.in_world
        sim.root = numpy.zeros((count, 13), numpy.float32)
        for row, (_, robot) in enumerate(sim.robots):
            at, turn = robot.pose.p, robot.pose.r
            sim.root[row, :7] = at.x, at.y, at.z, turn.x, turn.y, turn.z, turn.w
        sim.root[:, :3] += sim.origins
        sim.dof = numpy.zeros((count * len(asset.dofs), 2), numpy.float32)
        sim.force = numpy.zeros((count * len(asset.links), 3), numpy.float32)
        sim.target = {kind: numpy.zeros(count * len(asset.dofs), numpy.float32) for kind in ("position", "velocity")}
        sim.note("prepare_sim", places=sim.root[:, :3].tolist())
        sim.shown = {name: getattr(sim, name).copy() for name in ("root", "dof", "force")}
        sim.masses = numpy.array([sum(one.mass for one in robot.bodies) for _, robot in sim.robots], numpy.float32)
        self._changed(sim)

    def _changed(self, sim):
        if sim.prepared:
            sim.drives = numpy.stack([robot.dof for _, robot in sim.robots])

    # --------------------------------------------------------------------------------------------------------------- tensors

    def _acquire(self, sim, name):
        if not sim.prepared:
            raise GymError("tensors are acquired after prepare_sim")
        return Tensor(sim.shown[name])

    def acquire_actor_root_state_tensor(self, sim):
        return self._acquire(sim, "root")

    def acquire_dof_state_tensor(self, sim):
        return self._acquire(sim, "dof")

    def acquire_net_contact_force_tensor(self, sim):
        return self._acquire(sim, "force")

    def refresh_actor_root_state_tensor(self, sim):
        sim.shown["root"][:] = sim.root

    def refresh_dof_state_tensor(self, sim):
        sim.shown["dof"][:] = sim.dof

    def refresh_net_contact_force_tensor(self, sim):
        sim.shown["force"][:] = sim.force

    def _given(self, sim, name, tensor, like):
        if name in sim.set:
            raise GymError(f"{name} was called before, since the last step")
        sim.set.add(name)
        if tensor.array.dtype != numpy.float32 or tensor.array.shape != like.shape:
            given, wanted = (tensor.array.dtype, tensor.array.shape), (numpy.dtype("float32"), like.shape)
            raise GymError(f"{name} takes {wanted}, and was given {given}")
        return tensor.array

    def _rows(self, sim, name, indices, count):
        if indices.array.dtype != numpy.int32 or indices.array.shape != (count,):
            raise GymError(f"{name} takes {count} int32 indices, and was given {indices.array.dtype}")
        if len(set(indices.array.tolist())) != count or not 0 <= indices.array.min() <= indices.array.max() < len(sim.robots):
            raise GymError(f"{name}: indices {indices.array}")
        return indices.array

    def set_actor_root_state_tensor_indexed(self, sim, states, indices, count):
        name = "set_actor_root_state_tensor_indexed"
        states, rows = self._given(sim, name, states, sim.root), self._rows(sim, name, indices, count)
        sim.root[rows] = states[rows]
        sim.note(name, rows=rows.tolist())
        return True

    def set_dof_state_tensor_indexed(self, sim, states, indices, count):
        name = "set_dof_state_tensor_indexed"
        states, rows = self._given(sim, name, states, sim.dof), self._rows(sim, name, indices, count)
        each = (len(sim.robots), -1, 2)
        sim.dof.reshape(each)[rows] = states.reshape(each)[rows]
        sim.note(name, rows=rows.tolist())
        return True

    def set_dof_position_target_tensor(self, sim, targets):
        sim.target["position"][:] = self._given(sim, "set_dof_position_target_tensor", targets, sim.target["position"])
        sim.note("set_dof_position_target_tensor")
        return sim.fault != "deny"

    def set_dof_velocity_target_tensor(self, sim, targets):
        sim.target["velocity"][:] = self._given(sim, "set_dof_velocity_target_tensor", targets, sim.target["velocity"])
        sim.note("set_dof_velocity_target_tensor")
        return True

    # --------------------------------------------------------------------------------------------------------------- physics

    def simulate(self, sim):
        sim.set.clear()
        sim.steps += 1
        sim.note("simulate")
        if sim.fault == "overflow" and sim.steps == 3:
            print("PxGpu: contact buffer overflow detected, contacts have been dropped", flush=True)
        elif sim.fault and sim.steps == 3:
            if sim.fault == "die":
                print("something broke in the simulator", flush=True)
                os.kill(os.getpid(), signal.SIGSEGV)
            if sim.fault == "hang":
                ctypes.PyDLL(None).sleep(3600)  # holds the interpreter's lock, as a library that hangs does
            raise GymError("an error of the simulator")
        if not sim.still:
            self._joints(sim)
            self._bases(sim)

    def fetch_results(self, sim, wait):
        sim.note("fetch_results")

    def _joints(self, sim):
        drive, dt = sim.drives, sim.params.dt
        state = sim.dof.reshape(*drive.shape, 2)
        place, speed = state[..., 0].astype(float), state[..., 1].astype(float)
        inertia = drive["armature"] + LIGHT
        aim = numpy.where(drive["driveMode"] == DOF_MODE_VEL, sim.target["velocity"].reshape(drive.shape), 0.0)
        offset = sim.target["position"].reshape(drive.shape) - place
        stiffness, damping = drive["stiffness"], drive["damping"]
        after = (speed + dt * (stiffness * offset + damping * aim) / inertia) / (1 + dt * (damping + dt * stiffness) / inertia)
        most = drive["effort"].astype(float) * dt / inertia
        after = speed + numpy.clip(after - speed, -most, most)
        state[..., 0], state[..., 1] = place + dt * after, after

    def _bases(self, sim):
        dt, root, asset = sim.params.dt, sim.root, sim.asset
        place, turn = root[:, :3].astype(float), root[:, 3:7].astype(float)
        vector, scalar = turn[:, None, :3], turn[:, None, 3:]
        arms = numpy.broadcast_to(numpy.array(asset.places)[None], (len(root), len(asset.links), 3))
        cross = numpy.cross(vector, arms)
        ends = place[:, None] + arms + 2.0 * (scalar * cross + numpy.cross(vector, cross)) - sim.origins[:, None]
        depth = sim.ground(ends[..., 0], ends[..., 1]) + numpy.array(asset.radii) - ends[..., 2]
        colliding = (depth > 0.0) & (numpy.array(asset.shapes) > 0)
        push = numpy.where(colliding, numpy.maximum(STIFFNESS * depth - DAMPING * root[:, None, 9], 0.0), 0.0)
        sim.force.reshape(len(root), -1, 3)[..., 2] = push
        gravity = sim.params.gravity
        fall = numpy.array([gravity.x, gravity.y, gravity.z]) + numpy.array([0.0, 0.0, 1.0]) * (push.sum(1) / sim.masses)[:, None]
        root[:, 7:10] += dt * fall
        root[:, :3] = place + dt * root[:, 7:10]
        spin = 0.5 * dt * root[:, 10:13].astype(float)
        w = turn[:, 3] - (spin * turn[:, :3]).sum(1)
        xyz = turn[:, :3] + spin * turn[:, 3:] + numpy.cross(spin, turn[:, :3])
        length = numpy.sqrt(w * w + (xyz * xyz).sum(1))
        root[:, 3:6], root[:, 6] = xyz / length[:, None], w / length
