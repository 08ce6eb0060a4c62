"""Upstream's calling convention and file format, nothing else."""
