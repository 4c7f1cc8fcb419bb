"""The method: thoughts, their refinement, and scoring and writing after them.

Works on networks that are loaded and on token ids. Knows no checkpoint's name, no benchmark and no
lm-eval.
"""
