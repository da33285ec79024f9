"""Devices in a mesh, processes that run one command together, and chips."""
