"""Read texts, turn them into tokens and windows, and make tasks of them. This package is above models."""
