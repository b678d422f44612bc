"""The page: strict YAML, checked against the terms' own signatures, every error at once.  Imports no torch."""

from embodied_rl.config.loader import config_names, load, override
from embodied_rl.config.page import Entry, Page
from embodied_rl.problems import ConfigError, Problem

__all__ = ["ConfigError", "Entry", "Page", "Problem", "config_names", "load", "override"]
