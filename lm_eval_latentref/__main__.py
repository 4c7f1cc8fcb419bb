"""The entry point of the `latentref` command; launchers need it as a module.

    accelerate launch -m lm_eval_latentref run --model latentref --tasks latentref_mathqa_mc

Everything else is imported inside `main`, so that Ctrl-C during the imports prints one line and no
traceback.
"""

import signal
import sys


def main() -> int:
    """Run `cli.main` and return the exit status; Ctrl-C never prints a traceback."""
    try:
        from lm_eval_latentref.cli import main as command

        status = command()
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        status = 130
    # Python would print a traceback for Ctrl-C while it shuts down.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return status


if __name__ == "__main__":
    sys.exit(main())
