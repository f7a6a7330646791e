"""Serve the Snakefile: one graph per folder at a time, and what the terminal says while a graph runs."""
