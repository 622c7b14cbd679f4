"""Clicks to sessions, for sources whose rows are single actions."""

from __future__ import annotations

from dataclasses import dataclass, field

from freshet.stream.events import Session, SessionItem
from freshet.stream.rejection import DecodeLimits

ITEMS_MAX = DecodeLimits().items_max


@dataclass
class Visit:
    """One user's session while its actions are read, in order of time.

    `clicked` maps each product, in order of first sight, to whether it was put into the cart or bought.
    """

    session_id: str
    user_id: str
    first_ms: int
    last_ms: int
    clicked: dict[str, bool] = field(default_factory=dict)

    def add(self, product_id: str, time_ms: int, clicked: bool) -> None:
        """One action."""
        self.last_ms = time_ms
        self.clicked[product_id] = self.clicked.get(product_id, False) or clicked

    def session(self, event_id: str) -> Session:
        """The finished session, at the time of its last action; of very many products the last ones.

        `click` is true for a product that went into the cart or was bought and absent for all others: a set of
        page views does not say what was shown and not clicked.
        """
        items = [
            SessionItem(product_id, position, True if clicked else None)
            for position, (product_id, clicked) in enumerate(self.clicked.items())
        ]
        return Session(
            event_id,
            self.user_id,
            self.session_id,
            self.last_ms,
            duration_s=(self.last_ms - self.first_ms) / 1e3,
            items=tuple(items[-ITEMS_MAX:]),
        )
