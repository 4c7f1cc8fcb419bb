"""Judging: sweeps, studies, comparisons, the leaderboard, the gate, and the pages of all of them.

Numbers stay typed until they are written; the prose of pages is in `templates`. Trains nothing.
"""
