"""The side of lm-eval: the model class `latentref`, its response cache, and `latentref run`.

`lm_eval_seams` contains everything that relies on lm-eval beyond its public calls.
"""
