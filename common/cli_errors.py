"""How every command of this project ends: an exit code, and at most one line on stderr.

==========================================  =========  ==========================================
what happened                               exit code  stderr
==========================================  =========  ==========================================
the command did what it was asked           0
bad input, a missing file, no memory        2          ``error: …``
an unknown flag or a value of a wrong kind  2          ``error: …``
Ctrl-C                                      130
the reader of a pipe went away              141
==========================================  =========  ==========================================

A mistake of our own still shows its traceback: it is what a bug report needs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from common.errors import ConfigError, FoloError

USER_ERROR = 2
INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""
BROKEN_PIPE = 141
"""128 + SIGPIPE, as shells report it."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that raises; argparse would print its usage before the message."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            ConfigError: Always; :func:`run` prints it in one line.
        """
        raise ConfigError(f"{message} (see --help)")


def run(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a command on the process's arguments and exit.

    Args:
        main: Takes the arguments (without the program's name) and returns the exit code.
    """
    try:
        code = main(sys.argv[1:])
        # Flushed here, so that a reader who has gone away is noticed inside the try.
        sys.stdout.flush()
    except FoloError as error:
        code = _fail(str(error))
    except KeyboardInterrupt:
        print(file=sys.stderr)  # noqa: T201 (the terminal shows ^C without a line end)
        code = INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more on its way out; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = BROKEN_PIPE
    except OSError as error:
        code = _fail(_os_error(error))
    sys.exit(code)


def one_line(text: str) -> str:
    """``text`` with every run of white space turned into one space."""
    return " ".join(text.split())


def _fail(message: str) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)  # noqa: T201
    return USER_ERROR


def _os_error(error: OSError) -> str:
    """``/the/path: Permission denied`` instead of Python's ``[Errno 13] …``."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename is not None else reason
