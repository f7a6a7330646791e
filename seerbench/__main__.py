"""Start the command line, as `seerbench` and as `python -m seerbench`.

Ctrl-C ends it with exit code 130 and without a traceback at any moment, also while packages are still being
imported: this module imports nothing before it has taken over the signal.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

INTERRUPTED = 130  # the exit code by which a shell says that Ctrl-C ended a command


def main() -> None:
    """Run the command line until it ends or is interrupted."""
    interrupts = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        if len(interrupts) > 1:  # something swallowed the first one, or cleaning up takes too long
            os._exit(INTERRUPTED)
        raise KeyboardInterrupt

    def unraisable(error: Any) -> None:
        if error.exc_type is KeyboardInterrupt:  # it was raised in a destructor, where Python drops it
            os._exit(INTERRUPTED)
        sys.__unraisablehook__(error)

    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = unraisable
    try:
        from seerbench.cli import main as run

        run()
    except BaseException:
        # Whatever is raised after an interrupt is its consequence, such as an import that did not finish.
        if not interrupts:
            raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # from here on the process only ends
    sys.exit(INTERRUPTED if interrupts else 0)


if __name__ == "__main__":
    main()
