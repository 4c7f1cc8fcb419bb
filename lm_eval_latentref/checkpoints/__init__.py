"""Checkpoints: hub ids, folders, adapters, GGUF files and raw state dicts; and `latentref convert`.

Names are resolved to a plan, which is checked; then the models of the plan are loaded strictly.
"""
