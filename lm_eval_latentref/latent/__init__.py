"""The method: continuous thoughts, their refinement, and scoring or generating text after them.

Everything here works on loaded networks and token ids; checkpoint names, benchmarks and lm-eval
belong to the other folders.
"""
