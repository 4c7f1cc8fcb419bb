"""The method: continuous thoughts, their refinement, and scoring or generating text after them.

All modules here work on loaded networks and token ids. They do not know checkpoint names,
benchmarks or lm-eval; those belong to the other folders.
"""
