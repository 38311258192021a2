"""Samplers and TFDS builders."""
