"""`python -m lm_eval_latentref` is the `latentref` command; launchers need the module form.

accelerate launch -m lm_eval_latentref run --model latentref --tasks latentref_mathqa_mc
"""

from __future__ import annotations

import sys

from lm_eval_latentref.cli import main

if __name__ == "__main__":
    sys.exit(main())
