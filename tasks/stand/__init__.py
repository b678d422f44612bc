"""Standing as a pose command says: how high, and leaning where."""
