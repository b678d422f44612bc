"""Our environments as others want them."""
