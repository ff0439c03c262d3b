"""Notices of libraries in C++, which nothing in Python turns off."""

import os
import sys
from contextlib import contextmanager


@contextmanager
def without_notices():
    """Turns standard error away meanwhile, unless TF_CPP_MIN_LOG_LEVEL is 0: converters print pages beside their exceptions.

    The file descriptor itself is turned, for the whole process; exceptions and what they say come through.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        yield
        return
    sys.stderr.flush()
    original, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(original, 2)
        os.close(original)
        os.close(nowhere)
