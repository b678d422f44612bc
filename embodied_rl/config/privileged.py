"""What an actor sees and no robot measures: it trains well, and cannot be deployed as it is."""

from __future__ import annotations

from pathlib import Path

from embodied_rl.config.page import Page
from embodied_rl.config.terms import find_terms
from embodied_rl.family import load_family


def warnings_of(page: Page) -> list[str]:
    """Tell of each entry of the actor that no robot measures, in a line."""
    family = load_family(page.task).term_files if page.task else ()
    terms = find_terms([Path(path) for path in page.terms], family)[0]["observation"]
    return [
        f"{page.name}: observations.actor.{name}: no robot measures {entry.term}; leave it to the critic, or estimate it there"
        for name, entry in page.observations.get("actor", {}).items()
        if entry.term in terms and terms[entry.term].privileged
    ]
