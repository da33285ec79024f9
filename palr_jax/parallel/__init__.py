"""Meshes of devices, groups of processes that run one command, and figures of chips."""
