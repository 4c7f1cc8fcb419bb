"""Benchmark data: rows, splits, generated problems, and the documents that lm-eval's tasks read.

The YAML files in `task_configs` call this folder.
"""
