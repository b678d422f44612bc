"""MuJoCo Warp behind the Physics protocol: every simulation on one GPU, or slowly on the CPU.

The protocol's tensors are Warp's own memory.  A step launches kernels and nothing else: no host synchronization, no allocation
that torch's capture does not know of, so that the whole step of an environment can be one CUDA graph.
"""

from __future__ import annotations

import dataclasses
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mujoco
import mujoco_warp
import torch
import warp
from torch import Tensor

from embodied_rl import machine
from embodied_rl.config.page import PhysicsSettings
from embodied_rl.errors import UserError
from embodied_rl.physics import capacity
from embodied_rl.physics.tensors import TensorPhysics, runnable
from embodied_rl.physics.warp_fields import smooth_fields
from embodied_rl.scene import Scene

# its banner, and a line for each of some hundred kernels, are no news to the user of this suite
warp.config.log_level = warp.LOG_WARNING

log = logging.getLogger("embodied_rl")

_STATE = (
    *("qpos", "qvel", "act", "history", "plastic", "qacc_warmstart", "qfrc_applied", "xfrc_applied"),
    *("mocap_pos", "mocap_quat", "time"),
)
#: mujoco_warp's bits of lost contacts, by the setting that makes room.  Its others are of iterations that reached their cap,
#: and of sleeping, which is off.
_OVERFLOWS = {
    "physics.njmax": ("NEFC", "NJMAX_NNZ"),
    "physics.nconmax": ("BROADPHASE", "NARROWPHASE", "CCD", "HFIELD", "CONTACT_MATCH"),
}
_NO_SENSORS = int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
#: Model fields that may have a value per simulation.
_PER_SIMULATION = {f.name for f in dataclasses.fields(mujoco_warp.Model) if getattr(f.type, "shape", ())[:1] == ("*",)}
#: Memory beside the data, as a share of it: what a step allocates (0.13 with the shipped robots, measured by the tests; up to
#: 0.8 where convex geoms meet) and the history of this engine (0.15).
_SCRATCH = 0.8
#: Contacts of one geom that a contact sensor sees, at least: its feet and bodies touch the ground in a few points.
_MATCHES = 16
#: Seconds between two lines that say how far the kernels are.
_PROGRESS = 5.0
#: Warp's wrapper of each of torch's streams, by its handle.  Warp forgets a stream, and the capture on it, as soon as any
#: wrapper of it is collected, and torch hands out its 32 streams in turn: so each has one wrapper, which stays.
_WRAPPERS: dict[int, warp.Stream] = {}


class WarpPhysics(TensorPhysics):
    """The `warp` engine.

    Args:
        scene: the model, the meaning of its sensors, and the frames to track.
        num_envs: how many simulations.
        settings: the page's `physics` section.
        device: where they live.
        compiler: wraps what surrounds the substeps, `torch.compile` or the identity.

    Raises:
        UserError: the model has what MuJoCo Warp lacks, or the device has too little memory.
    """

    name, capturable = "warp", True

    def __init__(
        self,
        scene: Scene,
        num_envs: int,
        settings: PhysicsSettings,
        device: torch.device,
        compiler: Callable = lambda f: f,
    ) -> None:
        self._warp_device = warp.get_device(str(device))
        model = runnable(scene.model)
        smooth = bool(model.nhfield) and smooth_fields()
        with warp.ScopedDevice(self._warp_device):
            try:
                self._model = mujoco_warp.put_model(model)
            except (NotImplementedError, ValueError) as error:
                reason = str(error).rstrip(".")
                raise UserError(f"physics.engine: warp cannot run this model: {reason}; use native") from None
            option = self._model.opt
            # Messages from inside kernels are prints; overflow is read once an iteration instead.
            option.warn_overflow = 0
            # The solver waits for the slowest of thousands anyhow, and a conditional loop costs the eager path a
            # synchronization each turn.
            option.graph_conditional = False
            nconmax, njmax = settings.nconmax, settings.njmax
            self._njmax_given = njmax is not None
            if nconmax is None or njmax is None:
                pairs = self._model.nxn_geom_pair_filtered.numpy()
                measured = capacity.measure(scene.model, pairs, smooth=smooth)
                nconmax, njmax = nconmax or measured[0], njmax or measured[1]
            self.capacity = {"physics.nconmax": nconmax, "physics.njmax": njmax}
            # so that the setting which an overflow of the sensors names makes room there too
            option.contact_sensor_maxmatch = max(_MATCHES, nconmax)
            _check_memory(model, num_envs, nconmax, njmax, device)
            self._data = mujoco_warp.make_data(model, nworld=num_envs, nconmax=nconmax, njmax=njmax)
        data = {name: warp.to_torch(getattr(self._data, name)) for name in (*_STATE, "ctrl", "sensordata", "actuator_force")}
        self._overflow = warp.to_torch(self._data.overflow)
        self._captures: list[object] = []
        self._built = False
        if device.type == "cuda" and settings.graph and (reason := machine.graph_error(device)):
            log.warning("physics.graph: %s; the step runs without a graph, several times slower", reason)
            self.capturable = False
        super().__init__(
            scene,
            settings.decimation,
            {name: data[name] for name in _STATE if data[name].numel()},
            data["ctrl"],
            data["sensordata"],
            data["actuator_force"],
            compiler,
        )

    def drain_overflow(self) -> dict[str, int]:
        masks = [sum(int(mujoco_warp.OverflowType[bit]) for bit in bits) for bits in _OVERFLOWS.values()]
        counts = torch.stack([(self._overflow & mask).count_nonzero() for mask in masks]).tolist()
        self._overflow.zero_()
        return dict(zip(_OVERFLOWS, counts, strict=True))

    @contextmanager
    def capture(self, stream: torch.cuda.Stream) -> Iterator[None]:
        if stream.cuda_stream not in _WRAPPERS:
            _WRAPPERS[stream.cuda_stream] = warp.stream_from_torch(stream)
        wrapper = _WRAPPERS[stream.cuda_stream]
        # no synchronization on entering: it would make the capture depend on a stream outside of it
        with warp.ScopedStream(wrapper, sync_enter=False):
            warp.capture_begin(stream=wrapper, external=True)
            try:
                yield
            finally:
                # what it returns keeps the kernels' modules loaded
                self._captures.append(warp.capture_end(stream=wrapper))

    def _advance(self, substeps: int, *, sense: bool = True) -> None:
        if not self._built:
            self._build()
        option = self._model.opt
        flags = option.disableflags
        with warp.ScopedDevice(self._warp_device):
            for left in reversed(range(substeps)):
                # nothing in the dynamics reads a sensor, and only the last substep's are handed out
                option.disableflags = flags if sense and not left else flags | _NO_SENSORS
                mujoco_warp.step(self._model, self._data)
        option.disableflags = flags

    def _build(self) -> None:
        """Compile the kernels of a step, or load them from the cache of an earlier start."""
        self._built = True
        cache = warp.config.kernel_cache_dir
        log.info("building the physics kernels; the first time that takes a minute, then they are kept in %s", cache)
        # a step that is taken back: the kernels depend on the model's expanded fields, which now are known
        before = [tensor.clone() for tensor in self._state.values()]
        progress = _Progress()
        with warp.ScopedLogger(progress), warp.ScopedLogLevel(warp.LOG_INFO):
            self._advance(1)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        log.info("built in %.1f s: %d compiled, %d from the cache", progress.seconds, progress.compiled, progress.cached)
        for tensor, value in zip(self._state.values(), before, strict=True):
            tensor.copy_(value)

    def _expanded(self, field: str) -> Tensor:
        if self._captures:
            raise RuntimeError(f"{field} is expanded after a capture, whose graph would never see it")
        owner, name = (self._model.opt, "gravity") if field == "opt.gravity" else (self._model, field)
        if owner is self._model and field not in _PER_SIMULATION:
            raise AttributeError(field)
        if field in capacity.LOSSES:
            self._make_room(field)
        shared = getattr(owner, name)
        live = warp.array(shared.numpy().repeat(self.num_envs, axis=0), dtype=shared.dtype, device=self._warp_device)
        # kernels take row `world % rows`
        setattr(owner, name, live)
        return warp.to_torch(live)

    def _make_room(self, field: str) -> None:
        """Allocate rows for the friction losses that the model has none of and its simulations may have."""
        model, more = capacity.with_losses(runnable(self.model), field)
        if not more:
            return
        njmax = self.capacity["physics.njmax"]
        if not self._njmax_given:
            njmax = self.capacity["physics.njmax"] = njmax + more
        with warp.ScopedDevice(self._warp_device):
            nconmax = self.capacity["physics.nconmax"]
            roomy = mujoco_warp.make_data(model, nworld=self.num_envs, nconmax=nconmax, njmax=njmax)
        for part in dataclasses.fields(roomy):
            # the state keeps its memory, which the protocol's tensors are
            if _sizes(getattr(roomy, part.name)) != _sizes(getattr(self._data, part.name)):
                setattr(self._data, part.name, getattr(roomy, part.name))


class _Progress:
    """Listens to Warp while kernels are loaded, and says now and then how far they are."""

    def __init__(self) -> None:
        self._started = self._said = time.perf_counter()
        self.compiled = self.cached = 0

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._started

    def info(self, message: str) -> None:
        # "Module NAME HASH load on device 'cuda:0' took 812.02 ms  (compiled)"
        self.compiled += "(compiled)" in message
        self.cached += "(cached)" in message
        if time.perf_counter() - self._said > _PROGRESS:
            self._said = time.perf_counter()
            log.info("  %d modules of kernels after %.0f s", self.compiled + self.cached, self.seconds)

    def debug(self, message: str) -> None:
        pass

    def warning(self, message: str, category: type[Warning] | None = None, stacklevel: int = 1) -> None:
        warnings.warn(message, category, stacklevel=stacklevel + 1)

    def error(self, message: str) -> None:
        log.error("%s", message)


def _check_memory(model: mujoco.MjModel, num_envs: int, nconmax: int, njmax: int, device: torch.device) -> None:
    """Refuse what would not fit, before the first allocation.

    Raises:
        UserError: the device has too little free memory.
    """
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    with warp.ScopedDevice("cpu"):
        each = _size(mujoco_warp.make_data(model, nworld=1, nconmax=nconmax, njmax=njmax)) * (1.0 + _SCRATCH)
    if num_envs * each > free:
        raise UserError(
            f"env.num_envs: {num_envs} robots need about {num_envs * each / 2**30:.1f} GiB of {device}, which has "
            f"{free / 2**30:.1f} GiB free; at most {int(free / each):,} fit"
        )


def _sizes(part: object) -> object:
    """Describe the shape of an array, or of all arrays of a part, or a number itself: what differs where the room does."""
    if isinstance(part, warp.array):
        return part.shape
    if dataclasses.is_dataclass(part):
        return {field.name: _sizes(getattr(part, field.name)) for field in dataclasses.fields(part)}
    return part


def _size(data: object) -> int:
    """Bytes of all arrays of a dataclass, those of its parts included."""
    total = 0
    for field in dataclasses.fields(data):  # pyright: ignore[reportArgumentType]
        value = getattr(data, field.name)
        if isinstance(value, warp.array):
            total += value.capacity
        elif dataclasses.is_dataclass(value):
            total += _size(value)
    return total
