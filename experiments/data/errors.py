"""Errors of the data."""


class DataError(RuntimeError):
  """Data that is missing or bad; the message says how to get it."""
