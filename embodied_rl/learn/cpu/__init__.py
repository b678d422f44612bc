"""The arithmetic of small networks on a CPU, closed: `perceptron.cpp`, and what calls it."""
