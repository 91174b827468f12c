"""A faster VMAS: its physics, sensors and scenarios in fewer operations that never wait, with equal outputs."""
