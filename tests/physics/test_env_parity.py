"""Environment against environment: the same pages on another engine, step by step from the same state."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import mujoco
import pytest
import torch
from torch import Tensor

from embodied_rl import make_env
from embodied_rl.env import Env

ROWS, STEPS = 32, 30
#: The pages allow their solver six iterations, which cut it short in 8 % of these rows, flailing and falling as they do; and
#: solvers that are stopped on their way stand in different places.  With eight both arrive, if their line searches do.
SOLVER = ["physics.iterations=8", "physics.ls_iterations=50"]
PAGE = ["env.compile=false", "physics.num_threads=1", *SOLVER, "env.episode_s=0.5", f"env.num_envs={ROWS}"]
#: Observations and rewards are made of what tests/physics/test_parity.py compares, at scales of 0.05 to 1, so float32's rounding
#: in a control step (5e-5 rad/s of a joint) is most of it; ten times that.
TOLERANCE = 5e-4


def copy_state(native: Env, other: Env) -> None:
    """The whole state of every row, from C's engine to another one."""
    rows = torch.arange(ROWS)
    given, state = native.snapshot(rows), other.snapshot(rows)
    data, kind = mujoco.MjData(native.scene.model), mujoco.mjtState.mjSTATE_INTEGRATION
    for name in state:
        own = name.removeprefix("physics.state.")
        if own == name:
            state[name] = given[name].reshape(state[name].shape).to(state[name].dtype)
            continue
        for row in rows.tolist():
            mujoco.mj_setState(native.scene.model, data, given["physics.integration"][row].numpy(), kind)
            state[name][row] = torch.as_tensor(getattr(data, own), dtype=torch.float32)
    other.restore(rows, state)


def results(env: Env, actions: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What a step leaves behind, by name; and the flags of all contacts, (N, ...), both on the host."""
    step = env.step(actions.to(env.device))
    found = {**step.obs, "rewards": step.rewards[:, None]}
    found |= {f"final {name}": value * step.truncated[:, None] for name, value in step.final_obs.items()}
    found |= {flag: getattr(step, flag)[:, None].float() for flag in ("terminated", "truncated", "valid")}
    contacts = torch.cat([flags for name, flags in env.physics.sensors.items() if "contact" in name], dim=1)
    return {name: value.cpu().clone() for name, value in found.items()}, contacts.cpu()


def contact_switches(parity: ModuleType, env: Env, state: dict[str, Tensor], row: int) -> bool:
    """Whether rounding decides in the row's step which contacts or limits hold, perhaps in a substep that no sensor shows."""
    native: Any = env.physics
    model, data = copy.deepcopy(env.scene.model), mujoco.MjData(env.scene.model)
    for name, value in state.items():
        if name.startswith("physics.model."):
            field = getattr(model, name.removeprefix("physics.model."))
            field[:] = value[row].reshape(field.shape)
    mujoco.mj_setState(model, data, state["physics.integration"][row].numpy(), mujoco.mjtState.mjSTATE_INTEGRATION)
    data.ctrl[:] = native._ctrl[row]
    return parity.hangs_on_rounding(model, data, env.page.physics.decimation)


def check(parity: ModuleType, page: str, engine: str, device: str, *overrides: str) -> None:
    one = make_env.make(page, [*PAGE, *overrides])
    other = make_env.make(page, [*PAGE, *overrides], engine=engine, device=device)
    generator = torch.Generator().manual_seed(0)
    outliers, ends, pushed, most = 0, 0, 0, 0.0
    for _ in range(STEPS):
        copy_state(one, other)
        before = one.snapshot(torch.arange(ROWS))
        actions = 0.8 * torch.randn(ROWS, one.num_actions, generator=generator)
        (here, contacts), (there, their_contacts) = results(one, actions), results(other, actions)
        errors = {name: (value - there[name]).abs().amax(1) for name, value in here.items()}
        beyond = torch.stack([~(error <= TOLERANCE) for error in errors.values()]).any(0)
        switched = (contacts != their_contacts).any(1)
        rows = torch.nonzero(beyond & ~switched)[:, 0].tolist()
        rows = [row for row in rows if not contact_switches(parity, one, before, row)]
        assert {row: {name: float(error[row]) for name, error in errors.items()} for row in rows} == {}
        outliers += int(beyond.sum())
        ends += int(one.buffers["done"].sum())
        pushed += int((one._touched & ~one.buffers["done"]).sum())
        most = max(most, *(float(error.max()) for error in errors.values()))
    one.close()
    other.close()
    assert outliers <= 0.01 * ROWS * STEPS
    assert ends > ROWS and pushed > 0 and "final critic" in here  # episodes that end and robots that are pushed are among them
    assert most > 0.0  # they are two engines


@pytest.mark.parametrize("page", [pytest.param("go2_flat", marks=pytest.mark.slow), "go2_flat_full"])
def test_a_step_on_warp_is_the_step_in_c(parity: ModuleType, page: str) -> None:
    pytest.importorskip("mujoco_warp")
    check(parity, page, "warp", "cpu")


@pytest.mark.slow
def test_another_robots_step_on_warp_is_the_step_in_c(parity: ModuleType) -> None:
    pytest.importorskip("mujoco_warp")
    check(parity, "go1_flat", "warp", "cpu")
    # a round cone, for warp turns the friction pyramids of steep capsules otherwise (docs/engines.md)
    check(parity, "go1_flat_full", "warp", "cpu", "physics.cone=elliptic", "physics.iterations=20")


@pytest.mark.slow
def test_a_step_on_mjx_is_the_step_in_c(parity: ModuleType) -> None:
    pytest.importorskip("mujoco.mjx")
    check(parity, "go2_flat", "mjx", "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("page", ["go2_flat", "go2_flat_full", "go1_flat"])
def test_a_step_on_the_gpu_is_the_step_in_c(parity: ModuleType, page: str) -> None:
    check(parity, page, "warp", "cuda")
