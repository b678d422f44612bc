"""The model of a page: robot, terrain and the sensors that its terms ask for."""

from embodied_rl.scene.build import Scene, SceneError, build_scene

__all__ = ["Scene", "SceneError", "build_scene"]
