"""One folder per page whose trained policy ships: what `embodied_rl.learn.packing.pack` made of a run."""
