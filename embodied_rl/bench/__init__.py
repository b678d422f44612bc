"""Every measure that `embodied-rl bench` offers."""
