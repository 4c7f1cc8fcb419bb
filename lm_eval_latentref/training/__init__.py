"""`latentref train`: recipes, the curriculum, the loss, the trainer, state that survives a crash.

Writes folders that `checkpoints` opens. Knows no evaluation but its own validation.
"""
