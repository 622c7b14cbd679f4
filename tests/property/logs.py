"""Random event logs over a handful of users and products, rich in everything that can go wrong."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from freshet.store.graph import GraphLimits
from freshet.stream.events import Line, Product, Profile, Purchase, Session, SessionItem, View

LIMITS = GraphLimits(
    purchased_max=3,
    viewed_max=2,
    purchased_by_max=3,
    viewed_by_max=2,
    co_purchased_max=5,
    sessions_max=2,
    session_items_max=2,
    partners_max=2,
)

USERS = ["u1", "u1", "u2", "u2", "ü3", "u4", "u5", "u6", "u7"]
"""Two users to whom much happens, and enough others that most logs leave somebody alone for their second half: what
reaches these only as a ripple is not made good by an event of their own."""
users = st.sampled_from(USERS)
products = st.sampled_from(["p1", "p2", "p3", "p4", "p5"])
times = st.integers(1, 12)
amounts = st.none() | st.sampled_from([0.0, 1.0, 2.5])


@st.composite
def purchases(draw: st.DrawFn) -> Purchase:
    """An order whose content is a function of its id, so that a second draw is a duplicate or a cancellation."""
    number = draw(st.integers(0, 19))
    rng = random.Random(number)
    lines = rng.sample(["p1", "p2", "p3", "p4", "p5"], rng.randint(1, 5))
    lines += lines[: rng.randint(0, 1)]
    cancelled = draw(st.booleans())
    items = tuple(
        Line(product_id=p, quantity=rng.choice([None, 1.0, 2.0]), cancelled=cancelled and draw(st.booleans()))
        for p in lines
    )
    base = {"event_id": f"o{number}", "user_id": rng.choice(USERS), "timestamp": rng.randint(1, 12)}
    if len(lines) == 1:
        return Purchase(**base, product_id=lines[0], quantity=items[0].quantity)
    return Purchase(**base, items=items, cancelled=cancelled and draw(st.booleans()))


@st.composite
def views(draw: st.DrawFn) -> View:
    return View(
        event_id=f"v{draw(st.integers(0, 12))}",
        user_id=draw(users),
        product_id=draw(products),
        timestamp=draw(times),
        dwell_time_s=draw(amounts),
    )


@st.composite
def sessions(draw: st.DrawFn) -> Session:
    """Sessions differ in content only if they differ in event id."""
    number = draw(st.integers(0, 30))
    rng = random.Random(1000 + number)
    return Session(
        event_id=f"s{number}",
        user_id=rng.choice(USERS),
        session_id=f"session{rng.randint(0, 3)}",
        timestamp=rng.randint(1, 12),
        device=rng.choice([None, "phone", "desk"]),
        duration_s=rng.choice([None, 30.0]),
        items=tuple(
            SessionItem(
                product_id=f"p{rng.randint(1, 5)}", position=rng.choice([None, i]), click=rng.choice([None, True])
            )
            for i in range(rng.randint(0, 4))
        ),
    )


profiles = st.builds(
    Profile,
    user_id=users,
    timestamp=times,
    age_bucket=st.sampled_from([None, "25-34", "65+"]),
    signup_date=st.sampled_from([None, "2017-03-01"]),
) | st.builds(Profile, user_id=users, timestamp=times, forgotten=st.just(True))
catalogue = st.builds(
    Product,
    product_id=products,
    timestamp=times,
    brand=st.sampled_from([None, "b1", "b2"]),
    category=st.sampled_from([None, ("a",), ("a", "b")]),
    price=amounts,
) | st.builds(Product, product_id=products, timestamp=times, withdrawn=st.just(True))
logs = st.lists(views() | purchases() | sessions() | profiles | catalogue, min_size=1, max_size=60)
