"""The baselines: one file a method, each opening with its card (what, source, fidelity, what is timed)."""
