"""Evaluation: sweeps, studies, comparisons, the leaderboard, the gate, and the pages they write.

Numbers stay typed until they are written; the text of pages is in `templates`.
"""
