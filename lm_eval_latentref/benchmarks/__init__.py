"""Benchmark data: rows, splits, generated problems, and the documents of our lm-eval tasks.

The task files in `task_configs` call these modules.
"""
