"""Checkpoints: what their names mean, how they are opened, checked and converted."""
