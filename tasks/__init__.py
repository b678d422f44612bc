"""One folder per task family: the terms that only that family needs."""
