"""Rows: what a measurement looks like on disk, where it comes from, and whether it still holds.

schema.py defines the tables and store.py reads and writes them. provenance.py describes an execution,
source_digest.py the code that it measured. publish.py and staleness.py keep committed runs, bootstrap.py turns rows
into numbers with intervals.
"""
