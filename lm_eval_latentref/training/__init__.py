"""`latentref train`: recipes, the curriculum, the loss, the trainer, and state to resume from.

It writes folders that `checkpoints` opens, and validates by itself, without `evaluation`.
"""
