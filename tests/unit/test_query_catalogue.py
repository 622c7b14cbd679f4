"""Conditions over the catalogue, and the schema of a log."""

from __future__ import annotations

import numpy as np
import pytest

from freshet.store.columns import (
    EventColumns,
    ProductAttributes,
    ProductColumns,
    ProfileColumns,
    UserAttributes,
    ViewColumns,
)
from freshet.stream.query.build import read_query
from freshet.stream.query.catalogue import Catalogue
from freshet.stream.query.language import Condition
from freshet.stream.query.schema import Schema, restricted

SHOP = Catalogue.of(
    ["green", "black", "pot", "mystery", "free"],
    [
        ProductAttributes(("drinks", "tea"), "Leaf", 4.5),
        ProductAttributes(("drinks", "tea", "loose"), "leaf", 3.0),
        ProductAttributes(("kitchen",), None, 24.0),
        None,
        ProductAttributes(None, "Leaf", float("nan")),
    ],
)


def condition(text: str) -> Condition:
    found = read_query(f"PREDICT product_id FOR user USING product, view WHERE {text}").where
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "products"),
    [
        ("product.category = 'tea'", "green black"),
        ("product.category = 'drinks'", "green black"),
        ("product.category = 'drinks/tea'", "green black"),
        ("product.category = 'drinks/te'", ""),
        ("product.category = 'tea/loose'", ""),
        ("product.category IS 'drinks/tea'", "green"),
        ("product.category IS 'tea'", ""),
        ("product.category != 'tea'", "pot"),
        ("product.category IN ('kitchen', 'loose')", "black pot"),
        ("product.brand = 'Leaf'", "green free"),
        ("product.brand != 'Leaf'", "black"),
        ("product.brand IN ('Leaf', 'leaf')", "green black free"),
        ("product.price < 4.5", "black"),
        ("product.price <= 4.5", "green black"),
        ("product.price > 4.5", "pot"),
        ("product.price >= 4.5", "green pot"),
        ("product.price = 24", "pot"),
        ("product.price != 24", "green black"),
        ("product.price BETWEEN 3 AND 4.5", "green black"),
        ("product.price IN (3, 24)", "black pot"),
        ("NOT product.price < 4.5", "green pot mystery free"),
        ("product.category = 'tea' AND product.price < 4", "black"),
        ("product.category = 'kitchen' OR product.brand = 'leaf'", "black pot"),
        ("NOT (product.category = 'tea' OR product.price > 20)", "mystery free"),
    ],
)
def test_what_a_condition_holds_for(text: str, products: str) -> None:
    found = SHOP.matching(condition(text))
    assert [SHOP.product[i] for i in np.flatnonzero(found)] == products.split()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("product.category = 'te'", "'tea'"),
        ("product.category = 'drinks/Tea'", "'drinks/tea'"),
        ("product.category IS 'tea'", "'tea'"),
        ("NOT product.brand IN ('LEAF')", "LEAF"),
    ],
)
def test_a_value_that_no_product_has_is_named(text: str, hint: str) -> None:
    (note,) = SHOP.notes(condition(text))
    assert hint in note


def test_values_that_are_there_need_no_note() -> None:
    assert SHOP.notes(condition("product.category = 'tea' AND product.brand IN ('leaf') AND product.price < 1")) == []


def test_a_catalogue_without_the_attribute_says_so() -> None:
    bare = Catalogue.of(["a"], [None])
    assert "no product has a brand" in bare.notes(condition("product.brand = 'x'"))[0]


def test_a_catalogue_keeps_through_bytes() -> None:
    found = Catalogue.load(SHOP.dump())
    assert (found.product, found.category, found.brand) == (SHOP.product, SHOP.category, SHOP.brand)
    np.testing.assert_array_equal(found.price, SHOP.price)


def rows(*records: tuple[str, int, ProductAttributes | None]) -> ProductColumns:
    names, times, attributes = zip(*records, strict=True)
    return ProductColumns(list(names), np.array(times), np.arange(len(names), dtype=np.uint64), list(attributes))


def test_the_newest_record_of_a_product_counts_and_a_withdrawn_one_is_left_out() -> None:
    old, new = ProductAttributes(price=1.0), ProductAttributes(price=2.0)
    found = Catalogue.read([rows(("a", 5, new), ("b", 1, old)), rows(("a", 3, old), ("b", 2, None), ("c", 1, None))])
    assert found.product == ["a"]
    assert found.price.tolist() == [2.0]


def chunk() -> EventColumns:
    return EventColumns(
        views=ViewColumns(["u"], ["a"], np.array([86_400_000]), np.zeros(1, np.uint64), np.full(1, np.nan, np.float32)),
        products=rows(("a", 1, ProductAttributes(brand="x")), ("b", 2, None)),
        profiles=ProfileColumns(["u", "v"], np.array([1, 2]), np.zeros(2, np.uint64), [UserAttributes(geo="DE"), None]),
    )


def test_the_schema_is_what_the_log_holds() -> None:
    schema = Schema()
    schema.add(chunk())
    schema.add(EventColumns())
    assert schema.rows == {"user": 2, "product": 2, "purchase": 0, "view": 1, "session": 0}
    assert schema.present == {"user.geo": 1, "product.brand": 1}
    assert (schema.first_ms, schema.last_ms) == (86_400_000, 86_400_000)
    assert "view: 1 records" in schema.describe()
    assert "events from 1970-01-02 to 1970-01-02" in schema.describe()
    (note,) = schema.notes(frozenset({"session", "view"}))
    assert note.startswith("session")


def test_what_using_does_not_name_is_gone_but_forgetting_and_withdrawal_stay() -> None:
    found = restricted(chunk(), frozenset({"purchase"}))
    assert found.views.user == []
    assert found.profiles.attributes == [UserAttributes(), None]
    assert found.products.attributes == [ProductAttributes(), None]
    same = restricted(chunk(), frozenset({"user", "product", "view"}))
    assert same.views.user == ["u"]
    assert same.products.attributes[0] == ProductAttributes(brand="x")
