"""Films, viewers."""
