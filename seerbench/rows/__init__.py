"""Rows: what a measurement looks like on disk, where it comes from, and whether it still holds.

schema.py defines the tables and store.py reads and writes them. provenance.py describes an execution,
source_digest.py the code that it measured. publish.py and staleness.py keep committed runs. requests.py and
timings.py set rows apart from which nothing may be concluded; equal_sparsity.py and bootstrap.py turn the others
into numbers with intervals.
"""
