"""One YAML page per trainable task."""
