"""The baselines, one file per method. Each begins with its card: what it is, source, fidelity, what is timed."""
