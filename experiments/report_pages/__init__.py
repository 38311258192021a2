"""The pages that experiments.report writes, and the results they are made from."""
