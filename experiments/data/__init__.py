"""Samplers of training and evaluation data, and TFDS builders."""
