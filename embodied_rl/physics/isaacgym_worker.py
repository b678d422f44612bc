"""Isaac Gym's side of `embodied_rl.physics.isaacgym`: a process of the old Python that its binaries load in.

    python3.8 isaacgym_worker.py CHANNEL MEMORY LIFELINE

are file descriptors: a socket of requests and answers, JSON, one each; memory that both sides map; and a pipe that nobody writes
to, whose other end goes when its owner does.  It imports nothing of embodied_rl, and its syntax is that of Python 3.6.

Everything here is as Isaac Gym has it: quaternions xyzw, velocities in the world, joints and links in its importer's order.
"""

import fcntl
import json
import mmap
import os
import socket
import sys

PROTOCOL = 1
LARGEST = 1 << 20


def main():
    """Answer requests until there are no more."""
    del sys.path[0]  # this folder: beside this file stands an isaacgym.py, which is another
    lifeline = int(sys.argv[3])
    # The kernel ends this process when the other end of the pipe is gone, whatever it does at the time: SIGIO is not handled.
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=int(sys.argv[1]))
    worker = Worker(int(sys.argv[2]))
    while True:
        message = channel.recv(LARGEST)
        if not message:
            return
        request = json.loads(message.decode())
        try:
            answer = getattr(worker, request.pop("do"))(**request) or {}
        except Exception as error:
            answer = {"error": type(error).__name__ + ": " + " ".join(str(error).split())}
        channel.send(json.dumps(answer).encode())


class Worker:
    """What can be asked for; each method is a request."""

    def __init__(self, memory):
        self._memory = memory

    def hello(self, token):
        """Import the simulator, and say which it is; the token comes back."""
        from isaacgym import gymapi, gymtorch  # isort: skip  (before torch, it asks for that)
        import torch  # isort: skip

        self._gymapi, self._gymtorch, self._torch = gymapi, gymtorch, torch
        self._gym = gymapi.acquire_gym()
        return {
            "protocol": PROTOCOL,
            "token": token,
            "python": ".".join(str(part) for part in sys.version_info[:3]),
            "torch": torch.__version__,
            "isaacgym": _version(),
        }

    def load(self, device, threads, dt, gravity, folder, file, ground, samples):
        """Make the simulation and its ground, and read the robot; say in which order its parts are.

        `ground` is the friction of a plane at z = 0, or a field as `_add_field` takes it; `samples` names its file of int16.
        """
        gymapi = self._gymapi
        params = gymapi.SimParams()
        params.dt, params.substeps, params.up_axis = dt, 1, gymapi.UP_AXIS_Z
        params.gravity = gymapi.Vec3(*gravity)
        self._on_gpu = device.startswith("cuda")
        params.use_gpu_pipeline = self._on_gpu
        physx = params.physx
        physx.use_gpu, physx.num_threads = self._on_gpu, threads
        # legged_gym's, which has trained walking robots with them (BSD-3-Clause, legged_robot_config.py)
        physx.solver_type, physx.num_position_iterations, physx.num_velocity_iterations = 1, 4, 0
        physx.contact_offset, physx.rest_offset, physx.bounce_threshold_velocity = 0.01, 0.0, 0.5
        physx.max_depenetration_velocity, physx.default_buffer_size_multiplier = 1.0, 5
        physx.max_gpu_contact_pairs = 2**23
        physx.contact_collection = gymapi.CC_LAST_SUBSTEP
        self._device = device
        self._sim = self._gym.create_sim(int(device.partition(":")[2] or 0), -1, gymapi.SIM_PHYSX, params)
        if self._sim is None:
            raise RuntimeError(f"create_sim gave no simulation on {device}")
        if samples:
            self._add_field(samples, **ground)
        else:
            plane = gymapi.PlaneParams()
            plane.normal = gymapi.Vec3(0.0, 0.0, 1.0)
            plane.static_friction = plane.dynamic_friction = ground["friction"]
            self._gym.add_ground(self._sim, plane)
        options = gymapi.AssetOptions()
        options.default_dof_drive_mode = gymapi.DOF_MODE_POS
        options.collapse_fixed_joints = options.fix_base_link = options.disable_gravity = False
        options.replace_cylinder_with_capsule = options.flip_visual_attachments = False
        options.override_com = options.override_inertia = False
        options.angular_damping = options.linear_damping = options.armature = options.thickness = 0.0
        options.max_angular_velocity = options.max_linear_velocity = 1000.0
        gym, self._asset = self._gym, self._gym.load_asset(self._sim, folder, file, options)
        if self._asset is None:
            raise RuntimeError(f"load_asset read no robot of {folder}/{file}")
        return {
            "dofs": list(gym.get_asset_dof_names(self._asset)),
            "links": list(gym.get_asset_rigid_body_names(self._asset)),
            "shapes": [(one.start, one.count) for one in gym.get_asset_rigid_body_shape_indices(self._asset)],
        }

    def _add_field(self, samples, friction, rows, columns, cell, rise, place):
        """Add a grid of heights, whose rows are along y and columns along x, its least corner at `place`."""
        import numpy

        params = self._gymapi.HeightFieldParams()
        params.nbRows, params.nbColumns = rows, columns
        params.row_scale = params.column_scale = cell
        params.vertical_scale = rise
        params.transform.p = self._gymapi.Vec3(*place)
        params.static_friction = params.dynamic_friction = friction
        self._gym.add_heightfield(self._sim, numpy.fromfile(samples, dtype=numpy.int16), params)

    def share(self, size, arrays):
        """Map the memory, and find the arrays in it: offset, kind and shape by name."""
        import numpy

        memory = mmap.mmap(self._memory, size)
        self._arrays = {
            name: numpy.frombuffer(memory, kind, int(numpy.prod(shape)), start).reshape(shape)
            for name, (start, kind, shape) in arrays.items()
        }

    def build(self, pose, spacing, filters, modes, effort):
        """Make the robots, each with its own numbers of the arrays; after this their masses stay as they are.

        Args:
            pose: where each begins, (7,): position, and orientation xyzw.
            spacing: between them [m]; 0: all in one place, where they do not see each other.
            filters: of each shape; two that share a bit do not collide.
            modes: of each joint's drive, `position` or `velocity`.
            effort: its largest force.
        """
        gym, gymapi, arrays = self._gym, self._gymapi, self._arrays
        self._filters, self._effort = filters, effort
        kinds = {"position": gymapi.DOF_MODE_POS, "velocity": gymapi.DOF_MODE_VEL}
        self._modes = [kinds[mode] for mode in modes]
        count = len(arrays["root"])
        transform = gymapi.Transform()
        transform.p, transform.r = gymapi.Vec3(*pose[:3]), gymapi.Quat(*pose[3:])
        half = 0.5 * spacing
        lower, upper = gymapi.Vec3(-half, -half, 0.0), gymapi.Vec3(half, half, spacing)
        self._robots = []
        for row in range(count):
            env = gym.create_env(self._sim, lower, upper, max(1, int(count**0.5)))
            self._robots.append((env, gym.create_actor(env, self._asset, transform, "robot", row, 0, 0)))
            for field in ("mass", "drive", "friction"):
                self._set(field, row)
        gym.prepare_sim(self._sim)
        wrap = self._gymtorch.wrap_tensor
        self._root = wrap(gym.acquire_actor_root_state_tensor(self._sim))
        self._dof = wrap(gym.acquire_dof_state_tensor(self._sim))
        self._force = wrap(gym.acquire_net_contact_force_tensor(self._sim))
        self._refresh()
        # whether poses are the environment's or the world's, this finds where each has its origin
        self._origin = self._host(self._root)[:, :3] - arrays["root"].dtype.type(pose[:3])
        self._apart = bool(abs(self._origin).max() > 1e-6)
        if not self._apart:
            self._origin[:] = 0.0
        zeros = self._torch.zeros
        self._given = {
            "root": zeros(arrays["root"].shape, dtype=self._torch.float32, device=self._device),
            "dof": zeros((count * len(modes), 2), dtype=self._torch.float32, device=self._device),
        }
        self._targets = {}
        for mode, setter in (("position", gym.set_dof_position_target_tensor), ("velocity", gym.set_dof_velocity_target_tensor)):
            if mode in modes:
                columns = arrays["root"].dtype.type([one == mode for one in modes])
                tensor = zeros((count * len(modes),), dtype=self._torch.float32, device=self._device)
                self._targets[mode] = setter, tensor, None if len(set(modes)) == 1 else columns

    def step(self, substeps, controls, contacts, written, fields):
        """Take some substeps.

        Args:
            substeps: how many.
            controls: how many rows of the controls there are, 1 or as many as substeps.
            contacts: of how many of the last substeps the contact forces are wanted.
            written: how many robots' states were written; the array `rows` says whose.
            fields: what of the robots' numbers was written, in rows of the array `changed`.
        """
        gym, sim, arrays = self._gym, self._sim, self._arrays
        for field in fields:
            for row in arrays["changed"].nonzero()[0].tolist():
                self._set(field, row)
        if written:
            self._write(arrays["rows"][:written])
        for substep in range(substeps):
            if substep < controls:
                for setter, tensor, columns in self._targets.values():
                    values = arrays["control"][substep]
                    tensor.copy_(self._tensor((values if columns is None else values * columns).reshape(-1)))
                    _checked(setter(sim, self._gymtorch.unwrap_tensor(tensor)), setter)
            gym.simulate(sim)
            if not self._on_gpu:
                gym.fetch_results(sim, True)
            since = substep - substeps + contacts
            if since >= 0:
                gym.refresh_net_contact_force_tensor(sim)
                forces = self._host(self._force).reshape(len(self._robots), -1, 3).take(arrays["watched"], axis=1)
                x, y, z = forces[..., 0], forces[..., 1], forces[..., 2]
                arrays["contact"][since] = (x * x + y * y + z * z) ** 0.5
        self._refresh()
        arrays["root"][:] = self._host(self._root)
        if self._apart:
            arrays["root"][:, :3] -= self._origin
        arrays["dof"][:] = self._host(self._dof).reshape(arrays["dof"].shape)

    def _write(self, rows):
        """Set the states of these rows: one call each, as the simulator wants it."""
        gym, arrays, unwrap = self._gym, self._arrays, self._gymtorch.unwrap_tensor
        root = arrays["root"]
        if self._apart:
            root = root.copy()
            root[:, :3] += self._origin
        self._given["root"].copy_(self._tensor(root))
        self._given["dof"].copy_(self._tensor(arrays["dof"].reshape(-1, 2)))
        # kept: the simulator reads it when it steps
        self._rows = self._tensor(rows.copy()).to(self._device)
        for setter, given in (
            (gym.set_actor_root_state_tensor_indexed, self._given["root"]),
            (gym.set_dof_state_tensor_indexed, self._given["dof"]),
        ):
            _checked(setter(self._sim, unwrap(given), unwrap(self._rows), len(rows)), setter)

    def _set(self, field, row):
        """Give a robot its own numbers: `mass`, `drive` or `friction`."""
        gym, gymapi, arrays = self._gym, self._gymapi, self._arrays
        env, actor = self._robots[row]
        if field == "mass":
            properties = gym.get_actor_rigid_body_properties(env, actor)
            for link, one in enumerate(properties):
                one.mass = float(arrays["mass"][row, link])
                one.com = gymapi.Vec3(*arrays["centre"][row, link].tolist())
                tensor = gymapi.Mat33()
                tensor.x, tensor.y, tensor.z = (gymapi.Vec3(*line) for line in arrays["inertia"][row, link].tolist())
                one.inertia = tensor
            setter, given = gym.set_actor_rigid_body_properties, (properties, False)
        elif field == "drive":
            properties = gym.get_actor_dof_properties(env, actor)
            properties["driveMode"][:], properties["effort"][:] = self._modes, self._effort
            properties["friction"][:] = 0.0
            for name in ("stiffness", "damping", "armature"):
                properties[name][:] = arrays[name][row]
            setter, given = gym.set_actor_dof_properties, (properties,)
        else:
            properties = gym.get_actor_rigid_shape_properties(env, actor)
            for shape, one in enumerate(properties):
                one.friction, one.filter = float(arrays["friction"][row, shape]), self._filters[shape]
                one.rolling_friction = one.torsion_friction = one.restitution = 0.0
            setter, given = gym.set_actor_rigid_shape_properties, (properties,)
        _checked(setter(env, actor, *given), setter)

    def _refresh(self):
        self._gym.refresh_actor_root_state_tensor(self._sim)
        self._gym.refresh_dof_state_tensor(self._sim)

    def _host(self, tensor):
        return tensor.cpu().numpy()

    def _tensor(self, array):
        return self._torch.from_numpy(array)


def _checked(done, setter):
    """Refuse what the simulator did not take: it says so by a False, and goes on."""
    if done is False:
        raise RuntimeError(getattr(setter, "__name__", "a setter") + " was not taken")


def _version():
    """Find which release this is: 1.0rc4 is Preview 4."""
    try:
        from importlib.metadata import version
    except ImportError:  # before Python 3.8
        from pkg_resources import get_distribution

        return get_distribution("isaacgym").version
    return version("isaacgym")


if __name__ == "__main__":
    main()
