"""Benchmarks of speed; run python -m benchmarks.<name> --help."""
