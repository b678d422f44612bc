"""Engines that step many simulations of one model, behind one protocol."""
