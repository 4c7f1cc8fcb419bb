"""What is asked: rows of the benchmarks, splits, generated problems, lm-eval's documents of them.

The YAML files of `task_configs` call this room. Knows no model.
"""
