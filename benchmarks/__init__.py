"""Speed, as ratios in one run; python -m benchmarks.<name> --help."""
