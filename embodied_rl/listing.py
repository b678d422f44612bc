"""What there is to name: pages, task families, robots, terms."""

from __future__ import annotations

from collections.abc import Iterator

from embodied_rl.config import config_names
from embodied_rl.config.terms import REQUIRED, SECTIONS, find_terms
from embodied_rl.errors import UserError
from embodied_rl.family import family_names
from embodied_rl.paths import policy_names
from embodied_rl.problems import did_you_mean
from embodied_rl.robot import robot_names


def names() -> Iterator[str]:
    """List what ships, a line for each kind."""
    yield "pages:  " + "  ".join(config_names())
    yield "tasks:  " + "  ".join(family_names())
    yield "robots: " + "  ".join(robot_names())
    yield "policies, trained: " + ("  ".join(policy_names()) or "none")
    yield "terms:  embodied-rl list --terms [" + "|".join(SECTIONS) + "]"


def terms(section: str) -> Iterator[str]:
    """List the terms of a section of a page, or of "all", each with its parameters and what it computes.

    Raises:
        UserError: there is no such section; one line.
    """
    if section not in (*SECTIONS, "all"):
        near = did_you_mean(section, SECTIONS)
        raise UserError(f"--terms {section}: no such section; there are {', '.join(SECTIONS)}{near}")
    found, _ = find_terms()
    for one in SECTIONS if section == "all" else (section,):
        yield f"{one}:"
        for name, term in sorted(found[SECTIONS[one]].items()):
            given = {key: parameter.default for key, parameter in term.parameters.items()}
            written = (key if default is REQUIRED else f"{key}={default}" for key, default in given.items())
            yield f"  {name}({', '.join(written)})"
            yield f"      {term.doc}"
