"""Graphs of tensor operations as compiled functions."""
