"""lm-eval's side: the model class `latentref`, its response cache, `latentref run`.

`lm_eval_seams` holds everything that relies on lm-eval beyond its public calls.
"""
