"""From a policy to the robot: one folder with all that it needs, and its trial in plain MuJoCo."""
