"""Walking where a velocity command says."""
