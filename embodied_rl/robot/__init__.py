"""A robot: a folder with robot.yaml beside its MJCF or URDF, read into a RobotSpec (docs/robots.md).

robot.yaml gives what a model file cannot: the order of the joints, the default pose, motors, named groups of joints and
of bodies, feet, and which names swap under a left-right reflection. Reading it imports no simulator; names are checked
against the model when `RobotSpec.mjspec` loads it.
"""

from embodied_rl.robot.errors import RobotError
from embodied_rl.robot.page import find_robot, load_robot, robot_names
from embodied_rl.robot.spec import Foot, RobotSpec

__all__ = ["Foot", "RobotError", "RobotSpec", "find_robot", "load_robot", "robot_names"]
