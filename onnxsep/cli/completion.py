"""The shell's completion (``onnxsep --install-completion``): typer answers what the shell asks.

The shell runs ``onnxsep`` whenever its key is pressed, with the words so far in the environment.
"""

import os
import sys

_ASKS = "_ONNXSEP_COMPLETE"  # variables of typer's scripts
_WORDS = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")


def first_word() -> list[str]:
    """The first word of the command line, or of the one that is to be completed; nothing where there is none."""
    if not os.environ.get(_ASKS):
        return sys.argv[1:2]
    return next((os.environ[name].split()[1:2] for name in _WORDS if name in os.environ), [])
