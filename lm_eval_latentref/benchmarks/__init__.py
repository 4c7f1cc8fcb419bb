"""What is asked: the five benchmarks, the generated tasks, and lm-eval's documents of both."""
