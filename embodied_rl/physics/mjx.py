"""MJX, MuJoCo in JAX, behind the Physics protocol: for people who live in JAX.

The simulations' state are torch tensors; a control step hands them to one jitted function and copies its results back, both by
DLPack.  It cannot join a CUDA graph of torch: where speed matters on a GPU, `warp` is the engine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

# JAX would take three quarters of the GPU, which it shares with torch; read when jax is loaded
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

# A batched Cholesky factorization of jaxlib 0.10 blocks a thread of XLA's pool until other threads of the pool have done its
# parts; two of them at a time, on a machine with two cores, block for ever.  Read when JAX looks for its devices.
os.environ.setdefault("NPROC", str(max(8, os.cpu_count() or 1)))

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import torch
from mujoco import mjx
from torch import Tensor

from embodied_rl.errors import UserError
from embodied_rl.physics import capacity
from embodied_rl.physics.tensors import TensorPhysics, runnable
from embodied_rl.scene import Scene

# which accelerators it looked for in vain is no news
logging.getLogger("jax").setLevel(logging.WARNING)

_STATE = ("qpos", "qvel", "act", "qacc_warmstart", "qfrc_applied", "xfrc_applied", "mocap_pos", "mocap_quat")
#: MJX takes a friction loss of zero, where its model has one, for friction without a limit: so small a one is none [N m].
_LEAST_LOSS = 1e-10
_OUTPUTS = ("qpos", "qvel", "act", "qacc_warmstart")


class MjxPhysics(TensorPhysics):
    """The `mjx` engine, on its JAX implementation.

    Args:
        scene: the model, the meaning of its sensors, and the frames to track.
        num_envs: how many simulations.
        decimation: substeps in a control step.
        device: where they live.
        compiler: wraps what surrounds the substeps, `torch.compile` or the identity.

    Raises:
        UserError: the model has what MJX lacks.
    """

    name = "mjx"

    def __init__(
        self, scene: Scene, num_envs: int, decimation: int, device: torch.device, compiler: Callable = lambda f: f
    ) -> None:
        # matrix products in TF32 would lose the state's precision
        jax.config.update("jax_default_matmul_precision", "highest")
        try:
            self._jax_device = jax.devices(device.type)[device.index or 0]
        except (RuntimeError, IndexError):
            raise UserError(
                f"physics.device: {device}: this build of jax sees no such device; "
                'pip install "jax[cuda12]" for one that does, or take --device cpu'
            ) from None
        model = runnable(scene.model)
        if lacking := _lacking(model):
            raise UserError(f"physics.engine: mjx cannot run this model: it has no {', '.join(lacking)}; use native or warp")
        try:
            with jax.default_device(self._jax_device):
                self._model = mjx.put_model(model, impl="jax")
                self._template = mjx.make_data(model, impl="jax")
        except (NotImplementedError, ValueError) as error:
            reason = str(error).rstrip(".")
            raise UserError(f"physics.engine: mjx cannot run this model: {reason}; use native or warp") from None
        self._loose = model
        template = {name: np.asarray(getattr(self._template, name), dtype=np.float32) for name in _STATE}
        state = {name: torch.zeros(num_envs, *value.shape, device=device) for name, value in template.items() if value.size}
        self._sensed = torch.zeros(num_envs, model.nsensordata, device=device)
        self._forces = torch.zeros(num_envs, model.nu, device=device)
        super().__init__(
            scene,
            decimation,
            state,
            torch.zeros(num_envs, model.nu, device=device),
            self._sensed,
            self._forces,
            compiler,
        )

    def _advance(self, substeps: int, *, sense: bool = True) -> None:
        to_jax = jax.dlpack.from_dlpack
        state = {name: to_jax(tensor) for name, tensor in self._state.items()}
        fields = {name: to_jax(tensor) for name, tensor in self._model_fields.items()}
        try:
            out = _step_all(self._model, self._template, substeps, state, to_jax(self._ctrl), fields)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(
                f"env.num_envs: {self.num_envs} robots need more memory than {self._jax_device} has free; take fewer"
            ) from None
        targets = {name: self._state[name] for name in _OUTPUTS if name in self._state}
        for name, target in (targets | {"sensordata": self._sensed, "actuator_force": self._forces}).items():
            if target.numel():
                target.copy_(torch.from_dlpack(out[name]))

    def _expanded(self, field: str) -> Tensor:
        values = self._model.opt.gravity if field == "opt.gravity" else getattr(self._model, field)
        if not isinstance(values, jax.Array):
            raise AttributeError(field)  # what the compiled step is specialised on
        if field in capacity.LOSSES:
            self._make_room(field)
        shared = torch.from_numpy(np.array(values, dtype=np.float32)).to(self.device)
        return shared.repeat(self.num_envs, *[1] * shared.dim())

    def _make_room(self, field: str) -> None:
        """Compile constraints for the friction losses that the model has none of and its simulations may have."""
        self._loose, more = capacity.with_losses(self._loose, field)
        if more:
            with jax.default_device(self._jax_device):
                self._model = mjx.put_model(self._loose, impl="jax")
                self._template = mjx.make_data(self._loose, impl="jax")


def _lacking(model: mujoco.MjModel) -> list[str]:
    """List what of the model MJX takes without complaint, and then leaves out."""
    wanted = {
        "noslip iterations": model.opt.noslip_iterations > 0,
        "integrator discrete": model.opt.integrator == mujoco.mjtIntegrator.mjINT_DISCRETE,
        "delays of actuators and sensors": model.nhistory > 0,
        "plasticity": model.nplastic > 0,
    }
    return [name for name, there in wanted.items() if there]


def _steps(model: Any, template: Any, substeps: Any, state: dict, ctrl: Any, fields: dict) -> dict:
    """Take some substeps of one simulation, as a pure function."""
    fields = {name: jnp.maximum(value, _LEAST_LOSS) if name in capacity.LOSSES else value for name, value in fields.items()}
    own = {name: value for name, value in fields.items() if not name.startswith("opt.")}
    options = {name.removeprefix("opt."): value for name, value in fields.items() if name not in own}
    model = model.replace(opt=model.opt.replace(**options), **own)
    data = template.replace(ctrl=ctrl, **state)
    data = jax.lax.fori_loop(0, substeps, lambda _, data: _step(model, data), data)
    return {name: getattr(data, name) for name in (*_OUTPUTS, "sensordata", "actuator_force")}


#: Of all simulations.  The model is an argument and the number of substeps a value, so that environments of one page, and a step
#: with a controller between substeps, share what is compiled.
_step_all = jax.jit(jax.vmap(_steps, in_axes=(None, None, None, 0, 0, 0)))


def _step(model: Any, data: Any) -> Any:
    """One substep, as `mj_step` does it."""
    if model.opt.integrator != mjx.IntegratorType.IMPLICITFAST:
        return mjx.step(model, data)
    data = mjx.forward(model, data)
    # C leaves actuators at their limit out of the implicit damping, for their force no longer changes with velocity; MJX
    # 3.17 does not, and a saturated joint would be 1 rad/s off after a control step.
    force, bounds = data.actuator_force, model.actuator_forcerange
    held = model.actuator_forcelimited & ((force <= bounds[:, 0]) | (force >= bounds[:, 1]))
    damping = jnp.where(held, 0.0, model.actuator_biasprm[:, 2])
    return mjx.implicit(model.replace(actuator_biasprm=model.actuator_biasprm.at[:, 2].set(damping)), data)
