"""MInference: a pattern for each head that is searched offline, and its columns, diagonals or blocks found online.

    methods.py   the methods minference, minference-aligned and minference-upstream, with their card
    estimate.py  from q, k and patterns to what a plan keeps
    patterns.py  patterns of heads and their files

The offline search is in seerbench/search/minference.py.
"""
