"""`freshet query` on a live system: the reader with conditions and exclusions, and the catalogue of its topic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from freshet.reader import Reader
from freshet.stream import topics
from freshet.stream.kafka import TopicAdmin
from freshet.stream.kafka_settings import KafkaSettings
from freshet.stream.producer import Producer
from freshet.stream.query import on_live
from freshet.stream.query.build import read_query
from freshet.stream.query.encoded import Prediction
from freshet.stream.query.language import Compare, QueryError
from freshet.stream.settings import Settings
from freshet.stream.topics import TopicSettings
from tests.unit.query_logs import START_MS
from tests.unit.test_reader import Shop


@pytest.fixture
def reader() -> Reader:
    """Ann likes p1, p2, p3, p0 in this order, bought p1 and viewed p2; p3 and p0 are popular."""
    shop = Shop()
    shop.serving.set_current("v1")
    shop.user("ann", [0.1, 0.9, 0.5, 0.2], [("p1", "purchase", 7), ("p2", "view", 5)])
    shop.popular([("p3", 9.5), ("p0", 4.0)])
    return shop.reader()


def asked(reader: Reader, clauses: str, allowed: frozenset[str] | None = None, user: str = "ann") -> Prediction:
    query = read_query(f"PREDICT product_id FOR user '{user}' USING product, purchase, view {clauses}")
    assert query.users is not None
    (found,) = on_live.predict(query, reader, query.users, allowed)
    return found


@pytest.mark.parametrize(
    ("clauses", "products"),
    [
        ("", "p2 p1 p3 p0"),
        ("TOP 2", "p2 p1"),
        ("EXCLUDING bought TOP 2", "p2 p3"),
        ("EXCLUDING bought", "p2 p3 p0"),
        ("EXCLUDING seen TOP 2", "p3 p0"),
        ("EXCLUDING seen, bought", "p3 p0"),
    ],
)
def test_what_is_left_out_and_how_many_are_left(reader: Reader, clauses: str, products: str) -> None:
    found = asked(reader, clauses)
    assert found.known
    assert [item[0] for item in found.items] == products.split()


def test_conditions_restrict_the_products(reader: Reader) -> None:
    assert [item[0] for item in asked(reader, "", frozenset({"p0", "p2"})).items] == ["p2", "p0"]
    assert asked(reader, "", frozenset()).items == []


def test_an_unknown_user_gets_the_popular_ones(reader: Reader) -> None:
    found = asked(reader, "EXCLUDING bought", user="bob")
    assert not found.known
    assert [(item[0], item[2]) for item in found.items] == [("p3", "popular"), ("p0", "popular")]


@pytest.mark.parametrize("clause", ["WITHIN 5 s", "AS OF '2020-01-01'"])
def test_what_a_live_system_cannot_do_is_refused(clause: str) -> None:
    with pytest.raises(QueryError, match="or a LOG"):
        on_live.refuse(read_query(f"PREDICT product_id FOR user 'ann' USING view {clause}"))


def test_the_catalogue_is_what_the_topic_holds(
    embedded_broker: object, fresh_topics: Callable[[int], TopicSettings], reader: Reader
) -> None:
    bootstrap = str(embedded_broker.bootstrap)  # type: ignore[attr-defined]
    settings = replace(Settings(), kafka=KafkaSettings(bootstrap=bootstrap), topics=fresh_topics(2))
    topics.create(TopicAdmin(settings.kafka), settings.topics)
    with Producer(bootstrap, topics=settings.topics, kafka=settings.kafka) as producer:
        producer.product("p1", category=("drinks", "tea"), price=3.0, timestamp=START_MS + 5)
        producer.product("p1", category=("drinks",), price=9.0, timestamp=START_MS + 4)
        producer.product("p2", brand="Leaf", timestamp=START_MS + 5)
        producer.product("p3", brand="Leaf", timestamp=START_MS + 5)
        producer.withdraw("p3")
        producer.flush()
    live = on_live.Live(reader, {"origin": {"logs": []}}, settings)
    found = live.catalogue()
    order = sorted(range(len(found.product)), key=found.product.__getitem__)
    assert [found.product[i] for i in order] == ["p1", "p2"]
    assert found.price[order[0]] == 3.0
    assert found.category[order[0]] == ("drinks", "tea")
    assert found.brand[order[1]] == "Leaf"
    assert live.matching(Compare("category", "=", "tea")) == (frozenset({"p1"}), [])
    none, notes = live.matching(Compare("category", "=", "te"))
    assert not none and "'te'" in notes[0]
