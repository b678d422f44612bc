"""MuJoCo Warp behind the Physics protocol: every simulation on one GPU, or slowly on the CPU.

The protocol's tensors are Warp's own memory.  A step launches kernels and nothing else: no host synchronization, no allocation
that torch's capture does not know of, so that the whole step of an environment can be one CUDA graph.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mujoco
import mujoco_warp
import torch
import warp
from torch import Tensor

from embodied_rl.config.page import PhysicsSettings
from embodied_rl.errors import UserError
from embodied_rl.physics import capacity
from embodied_rl.physics.tensors import TensorPhysics, runnable
from embodied_rl.scene import Scene

# its banner, and a line for each of some hundred kernels, are no news to the user of this suite
warp.config.log_level = warp.LOG_WARNING

log = logging.getLogger("embodied_rl")

_STATE = ("qpos", "qvel", "act", "qacc_warmstart", "qfrc_applied", "xfrc_applied", "mocap_pos", "mocap_quat", "time")
#: mujoco_warp's overflow bits, by the setting that makes room; its others say that a solver reached its iterations.
_OVERFLOWS = {
    "physics.njmax": ("NEFC", "NJMAX_NNZ"),
    "physics.nconmax": ("BROADPHASE", "NARROWPHASE", "CCD", "HFIELD", "CONTACT_MATCH"),
}
#: Scratch memory of a step beside the data, as a share of it (graph.md of mujoco_warp's nightlies: up to 0.8).
_SCRATCH = 0.8


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

    capturable = True

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
        with warp.ScopedDevice(self._warp_device):
            try:
                self._model = mujoco_warp.put_model(model)
            except (NotImplementedError, ValueError) as error:
                raise UserError(f"physics.engine: warp cannot run this model: {error}; use native") from None
            option = self._model.opt
            # Messages from inside kernels are prints; overflow is read once an iteration instead.
            option.warn_overflow = 0
            # The solver waits for the slowest of thousands anyhow, and a conditional loop costs the eager path a
            # synchronization each turn.
            option.graph_conditional = False
            option.deterministic = settings.deterministic
            option.contact_sensor_maxmatch = 16
            nconmax, njmax = settings.nconmax, settings.njmax
            if nconmax is None or njmax is None:
                pairs = self._model.nxn_geom_pair_filtered.numpy()
                measured = capacity.measure(scene.model, pairs)
                nconmax, njmax = nconmax or measured[0], njmax or measured[1]
            self.capacity = {"physics.nconmax": nconmax, "physics.njmax": njmax}
            _check_memory(model, num_envs, nconmax, njmax, device)
            self._data = mujoco_warp.make_data(model, nworld=num_envs, nconmax=nconmax, njmax=njmax)
        data = {name: warp.to_torch(getattr(self._data, name)) for name in (*_STATE, "ctrl", "sensordata", "actuator_force")}
        self._overflow = warp.to_torch(self._data.overflow)
        self._captures: list[object] = []
        self._built = False
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
        seen = self._overflow.tolist()
        self._overflow.zero_()
        masks = {name: sum(int(mujoco_warp.OverflowType[bit]) for bit in bits) for name, bits in _OVERFLOWS.items()}
        return {name: sum(1 for bits in seen if bits & mask) for name, mask in masks.items()}

    @contextmanager
    def capture(self, stream: torch.cuda.Stream) -> Iterator[None]:
        # Warp forgets a stream, and its capture, when a second wrapper of it is collected: this one is kept.
        wrapper = warp.stream_from_torch(stream)
        with warp.ScopedStream(wrapper, sync_enter=False):
            warp.capture_begin(stream=wrapper, external=True)
            try:
                yield
            finally:
                # what capture_end returns keeps the kernels' modules loaded
                self._captures.append((wrapper, warp.capture_end(stream=wrapper)))

    def _advance(self, substeps: int) -> None:
        if not self._built:
            self._build()
        with warp.ScopedDevice(self._warp_device):
            for _ in range(substeps):
                mujoco_warp.step(self._model, self._data)

    def _build(self) -> None:
        """Compile the kernels of a step, or load them from the cache of an earlier start."""
        self._built = True
        cache = warp.config.kernel_cache_dir
        log.info("building the physics kernels; the first time that takes a minute, then they are kept in %s", cache)
        # a step that is taken back: the kernels depend on the model's expanded fields, which now are known
        before = [tensor.clone() for tensor in self._state.values()]
        started = time.perf_counter()
        self._advance(1)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        log.info("built in %.1f s", time.perf_counter() - started)
        for tensor, value in zip(self._state.values(), before, strict=True):
            tensor.copy_(value)

    def _expanded(self, field: str) -> Tensor:
        shared = getattr(self._model, field)
        values = shared.numpy().repeat(self.num_envs // shared.shape[0], axis=0)
        live = warp.array(values, dtype=shared.dtype, device=self._warp_device)
        # kernels take row `world % rows`
        setattr(self._model, field, live)
        return warp.to_torch(live)


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
