"""Choosing settings and judging them: sweeps, statistics, comparisons and studies."""
