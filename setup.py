"""Packages are found, not listed; all else stands in pyproject.toml.

tasks, robots, configs and policies stand at the top of the repository, where people look, and install under the package.
"""

from setuptools import find_packages, setup

SHIPPED = ("configs", "policies", "robots", "tasks")

setup(
    packages=[
        *find_packages(include=["embodied_rl", "embodied_rl.*"]),
        *(f"embodied_rl.{name}" for name in find_packages(include=[*SHIPPED, *(f"{name}.*" for name in SHIPPED)])),
    ],
    package_dir={"embodied_rl": "embodied_rl"} | {f"embodied_rl.{name}": name for name in SHIPPED},
)
