"""Figures, one module per family; they take arrays or rows of results, not tasks."""
