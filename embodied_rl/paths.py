"""Where the robots, pages, task families and policies that ship with the package lie, installed or in a source checkout."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent

LABEL = "policy.json"
"""In the folder of a packed policy: what it is, for people.  No run has such a file."""


def shipped(kind: str) -> Path:
    """Find the folder of `robots`, `configs`, `tasks` or `policies`: inside the installed package, or beside it in a checkout."""
    inside = PACKAGE / kind
    return inside if inside.is_dir() else PACKAGE.parent / kind


def policy_names() -> list[str]:
    """List the pages whose policy ships with the package."""
    return sorted(label.parent.name for label in shipped("policies").glob(f"*/{LABEL}"))
