"""What pages that ask for a velocity are tried with: one leg in the air, marching in place, and a perfect walker.

Legend of the shapes: N envs, F feet, P points of a foot.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from embodied_rl.config import Page
from embodied_rl.mdp.moment import Moment
from embodied_rl.mdp.puppet import Motion, Puppet
from embodied_rl.mdp.score import Environment

from .score import velocity_command

#: Slow commands ask for no more than this [m/s, rad/s].
_SLOW = 0.3
#: What a page that says nothing of it is tried with: how high feet swing [m], and the share of a cycle that they stand.
_HEIGHT, _STANCE = 0.08, 0.55
#: How far a foot is above the ground at once, when it leaves it [m].
_FREE = 2e-3


def asked(page: Page) -> dict[str, list[str]]:
    """Ask for all velocities of the page's ranges, and for the slow ones among them alone; each is held on and on."""
    path = f"commands.{velocity_command(page)}"
    changes = {"moving commands": [f"{path}.resample_s=[1000.0, 1000.0]", f"{path}.standing=0.0"]}
    ranges = {name: page.commands[velocity_command(page)].params[name] for name in ("lin_vel_x", "lin_vel_y", "ang_vel_z")}
    slow = {name: [max(low, -_SLOW), min(high, _SLOW)] for name, (low, high) in ranges.items()}
    if all(low <= high for low, high in slow.values()) and any(list(ranges[name]) != slow[name] for name in slow):
        cut = [f"{path}.{name}={value}" for name, value in slow.items()]
        changes["slow commands"] = [*changes["moving commands"], *cut]
    return changes


def counts(env: Environment, moment: Moment) -> Tensor:
    """Say who is asked to move, bool (N,)."""
    return moment.command_term(velocity_command(env.page)).moving(moment) > 0.0


def one_leg(env: Environment, moment: Moment, feet: Tensor) -> Motion:
    """Hold the last foot in the air, and stand on the others."""
    held = feet.clone()
    held[-1, :, 2] += _FREE + _of_page(env, "target", _HEIGHT)
    places = held.expand(moment.num_envs, *feet.shape)
    return Motion(torch.zeros_like(moment.command(velocity_command(env.page))), places, torch.zeros_like(places))


def marches(env: Environment, moment: Moment, feet: Tensor) -> Motion:
    """Step by the clock where it stands."""
    return _steps(env, moment, feet, torch.zeros_like(moment.command(velocity_command(env.page))))


def walks(env: Environment, moment: Moment, feet: Tensor) -> Motion:
    """Do what the command says, stepping by the clock; whoever is to stand stands."""
    command = moment.command_term(velocity_command(env.page))
    return _steps(env, moment, feet, command.command * command.moving(moment)[:, None])


#: One leg, marching in place, and what the family asks for.
PUPPETS = {
    "marches": Puppet(marches, "marching in place"),
    "one leg": Puppet(one_leg, "one leg in the air"),
    "walks": Puppet(walks, "a walker"),
}


def _steps(env: Environment, moment: Moment, feet: Tensor, velocity: Tensor) -> Motion:
    """Step by the clock while the base moves at a velocity (N, 3), each foot below its place in mid-stance.

    Horizontal vectors are complex numbers.  A foothold stays where it is in the world, and the base turns and goes on above it;
    a foot that swings rises in an arch and goes over the ground from its last foothold to the next.
    """
    command = moment.command_term(velocity_command(env.page))
    stance, period = _of_page(env, "stance", _STANCE), 1.0 / float(command.gait_frequency)
    swing = (1.0 - stance) * period
    cycle = command.cycle(moment)[..., None]
    standing = (cycle < stance) | (command.moving(moment) == 0.0)[:, None, None]
    place, way = torch.complex(feet[..., 0], feet[..., 1]), torch.complex(velocity[:, 0], velocity[:, 1])[:, None, None]
    turn = velocity[:, 2, None, None]
    share = ((cycle - stance) / (1.0 - stance)).clamp(0.0, 1.0)
    blend, speed = share.square() * (3.0 - 2.0 * share), 6.0 * share * (1.0 - share) / swing
    # in the frame that the base has in the middle of its swing
    last, following = (_gone(way, turn, time) + _turned(turn, time) * place for time in (-0.5 * period, 0.5 * period))
    foothold = torch.where(standing, place, last + (following - last) * blend)
    time = torch.where(standing, (cycle - 0.5 * stance) * period, (share - 0.5) * swing)  # since the middle of either
    there = _turned(turn, -time) * (foothold - _gone(way, turn, time))
    over = torch.where(standing, 0.0, _turned(turn, -time) * (following - last) * speed)
    height = _of_page(env, "target", _HEIGHT)
    rise = torch.where(standing, 0.0, _FREE + height * torch.sin(math.pi * share)).expand(there.shape)
    rising = torch.where(standing, 0.0, height * math.pi / swing * torch.cos(math.pi * share)).expand(there.shape)
    return Motion(
        velocity,
        torch.stack((there.real, there.imag, feet[..., 2] + rise), dim=-1),
        torch.stack((over.real, over.imag, rising), dim=-1),
    )


def _turned(turn: Tensor, time: Tensor | float) -> Tensor:
    """Say by how much a base that turns at a rate [rad/s] has turned after a time [s], as a complex number of length 1."""
    return torch.polar(torch.ones_like(turn * time), turn * time)


def _gone(way: Tensor, turn: Tensor, time: Tensor | float) -> Tensor:
    """Say how far a base has gone after a time [s] that goes and turns at constant rates, in the frame that it began in [m]."""
    half = 0.5 * turn * time
    return way * time * torch.polar(torch.sinc(half / math.pi), half)


def _of_page(env: Environment, key: str, otherwise: float) -> float:
    """Find a number of the page's first reward that looks at the feet and has one of this name."""
    for term in env.terms.rewards:
        number = env.terms.params.get(f"rewards.{term.name}.{key}")
        if number is not None and any(need.startswith("foot_") for need in getattr(term.function, "needs", ())):
            return float(number)
    return otherwise
