"""`embodied-rl new`: what the suite needs of a robot, guessed from its model file alone."""
