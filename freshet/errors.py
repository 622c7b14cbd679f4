"""The root of every error that Freshet raises for a reason a user can act on."""

from __future__ import annotations


class FreshetError(Exception):
    """Something a user can put right; the message names it and the remedy."""
