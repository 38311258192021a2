"""Experiment binaries, one file a task."""
