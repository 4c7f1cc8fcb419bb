"""The `latentref` command, from its first line on; launchers need the module form.

    accelerate launch -m lm_eval_latentref run --model latentref --tasks latentref_mathqa_mc

All else is imported where Ctrl-C ends in a line, and once the command is over Ctrl-C ends quietly.
"""

import signal
import sys


def main() -> int:
    """`cli.main` of the command line, guarded while it is imported and while Python shuts down."""
    try:
        from lm_eval_latentref.cli import main as command

        status = command()
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        status = 130
    # What is left is Python's own, which would answer with a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return status


if __name__ == "__main__":
    sys.exit(main())
