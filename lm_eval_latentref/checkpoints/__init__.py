"""Names to models: hub ids, folders, adapters, GGUF files, raw state dicts; and `convert`.

A name is resolved to a plan, checked, and opened strictly.
"""
