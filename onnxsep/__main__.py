"""``python -m onnxsep``, and what the console script calls.

The imports of the command line take a second or two. A signal in that time ends the process at once, without Python's
traceback: nothing has been written yet. From then on ``onnxsep.cli.interrupts`` answers signals.
"""

import os
import signal


def main() -> None:
    """Run the command line."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup stays as it is
            signal.signal(number, lambda number, frame: os._exit(128 + number))
    from onnxsep.cli import main as run  # not before

    run()


if __name__ == "__main__":
    main()
