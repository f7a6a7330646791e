"""Measure: time kernels and methods, and find the accuracy of models under a method.

Functions here take resolved inputs (tensors, models, methods, arms) and return rows. They read no preset and write
no file; steps/ does both. Timing and accuracy do not import each other.
"""
