"""lm-eval's side: the model class `latentref`, its response cache, `latentref run`.

What rests on lm-eval's own code beyond its public calls is in `lm_eval_seams`. Knows no training
and no report.
"""
