"""A replica that writes in every way there is, and what of it a log is to show."""

from collections import Counter

#: To be put before an application's code.
SAY = """
import logging, os, sys, warnings

def say(what):
    print(what, "to stdout")
    print(what, "to stderr", file=sys.stderr)
    warnings.warn(what + " as a warning")
    os.write(2, (what + " as C would\\n").encode())
    logging.getLogger("ray.serve").info("%s logged\\n%s goes on", what, what)
"""
WAYS = ("to stdout", "to stderr", "as a warning", "as C would", "logged", "goes on")


def counted(lines, what):
    """Return how often a log shows each of what was said."""
    words = [f"{what} {way}" for way in WAYS]
    return Counter(each for line in lines for each in words if each in line)


def once(what):
    """Return what is counted of what was said once."""
    return Counter(f"{what} {way}" for way in WAYS)


def until_said(lines, what):
    """Return the lines of a followed log until it has shown all that was said last."""
    taken = []
    for line in lines:
        taken.append(line)
        if counted(taken, what) == once(what):
            break
    return taken
