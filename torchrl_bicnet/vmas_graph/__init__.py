"""The step of a VMAS environment as one graph, compiled by Inductor."""
