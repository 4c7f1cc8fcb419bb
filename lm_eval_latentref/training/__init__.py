"""`latentref train`: recipes, the curriculum, the loop, and state that survives a crash."""
