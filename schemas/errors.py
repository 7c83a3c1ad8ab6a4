"""The error model: what is wrong, why, and what to do about it.

The project distinguishes two kinds of failure:

* an *error* stops the command. It is a :class:`CotError`, its message names the file, row or key, and it says what to do;
* a *rejection* is data. A query that cannot be used becomes a row with an enumerated reason and the job goes on.

Errors cross process boundaries (Ray, process pools), so they pickle.
"""

from __future__ import annotations


class CotError(Exception):
    """A failure that the user can act on.

    Args:
        problem: what is wrong, naming the file, row, key or value.
        remedy: what to do about it; empty only if the problem already says it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)  # both in args: pickle rebuilds an exception from them
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n  what to do: {self.remedy}" if self.remedy else self.problem


class InputError(CotError):
    """Input files that are missing, malformed or inconsistent."""


class ConfigError(CotError):
    """A setting that is unknown, of the wrong type or impossible."""


class BuildError(CotError):
    """A build that cannot go on."""


class BuildStopped(CotError):
    """A build that was asked to stop. All answers so far are kept."""
