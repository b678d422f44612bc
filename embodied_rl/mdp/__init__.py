"""Generic terms of a Markov decision process, and what they see."""
