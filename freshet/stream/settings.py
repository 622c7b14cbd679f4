"""Every setting, composed from the dataclasses beside what they configure.

A field is overridden by the environment variable `FRESHET_<SECTION>_<FIELD>`, in upper case: the section
`ripple` and its field `ripple_share` give `FRESHET_RIPPLE_RIPPLE_SHARE`. `docs/settings.md` lists them all.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import msgspec

from freshet.errors import FreshetError
from freshet.store.graph import GraphLimits
from freshet.store.index_settings import IndexSettings
from freshet.store.popular import PopularSettings
from freshet.store.redis_settings import RedisSettings
from freshet.store.snapshot_settings import SnapshotSettings
from freshet.stream.deadletter import DeadLetterLimits
from freshet.stream.embedded import REDIS_BINARY
from freshet.stream.kafka_settings import KafkaSettings
from freshet.stream.rejection import DecodeLimits
from freshet.stream.sink import SinkSettings
from freshet.stream.topics import TopicSettings
from freshet.stream.updater import RippleSettings
from freshet.stream.worker import WorkerSettings

PREFIX = "FRESHET"
T = TypeVar("T")


class SettingError(FreshetError):
    """A setting has a value that cannot be used; the message names its variable."""


@dataclass(frozen=True)
class Settings:
    """All sections. Each is a frozen dataclass that stands beside what it configures."""

    kafka: KafkaSettings = field(default_factory=KafkaSettings)
    topics: TopicSettings = field(default_factory=TopicSettings)
    redis: RedisSettings = field(default_factory=RedisSettings)
    index: IndexSettings = field(default_factory=IndexSettings)
    decode: DecodeLimits = field(default_factory=DecodeLimits)
    deadletter: DeadLetterLimits = field(default_factory=DeadLetterLimits)
    graph: GraphLimits = field(default_factory=GraphLimits)
    ripple: RippleSettings = field(default_factory=RippleSettings)
    sink: SinkSettings = field(default_factory=SinkSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    popular: PopularSettings = field(default_factory=PopularSettings)
    snapshot: SnapshotSettings = field(default_factory=SnapshotSettings)


def from_environment(environment: Mapping[str, str]) -> Settings:
    """The defaults with what the environment overrides.

    Raises SettingError for a value that cannot be read, and for a variable of a known section that names
    no field (a misspelt setting must not be silently ignored).
    """
    settings = Settings()
    known = {REDIS_BINARY}
    for section in fields(Settings):
        current = getattr(settings, section.name)
        changes, names = _changes(type(current), f"{PREFIX}_{section.name.upper()}_", environment)
        known |= names
        if changes:
            try:
                settings = replace(settings, **{section.name: replace(current, **changes)})
            except ValueError as e:
                raise SettingError(f"{', '.join(sorted(names & set(environment)))}: {e}") from e
    sections = tuple(f"{PREFIX}_{section.name.upper()}_" for section in fields(Settings))
    for name in environment:
        if name.startswith(sections) and name not in known:
            raise SettingError(f"{name} is no setting; docs/settings.md lists those of its section")
    return settings


def as_environment(settings: Settings) -> dict[str, str]:
    """The variables that make `from_environment` give these settings, for a process that is to share them."""
    out = {}
    for section in fields(Settings):
        chosen, default = getattr(settings, section.name), getattr(Settings(), section.name)
        for f in fields(chosen):
            value = getattr(chosen, f.name)
            if value != getattr(default, f.name):
                text = msgspec.json.encode(value).decode() if isinstance(value, Mapping) else str(value)
                out[f"{PREFIX}_{section.name}_{f.name}".upper()] = "" if value is None else text
    return out


def variables() -> dict[str, tuple[Any, str]]:
    """Every variable with its default and type, by name."""
    out = {}
    for section in fields(Settings):
        default = getattr(Settings(), section.name)
        hints = typing.get_type_hints(type(default))
        for f in fields(default):
            name = f"{PREFIX}_{section.name}_{f.name}".upper()
            out[name] = (getattr(default, f.name), getattr(hints[f.name], "__name__", str(hints[f.name])))
    return out


def _changes(kind: type[Any], prefix: str, environment: Mapping[str, str]) -> tuple[dict[str, Any], set[str]]:
    hints = typing.get_type_hints(kind)
    changes, names = {}, set()
    for f in fields(kind):
        name = prefix + f.name.upper()
        names.add(name)
        if name in environment:
            changes[f.name] = _value(name, environment[name], hints[f.name], f.repr)
    return changes, names


def _value(name: str, text: str, hint: Any, shown: bool) -> Any:
    options = [h for h in typing.get_args(hint) if h is not type(None)] or [hint]
    if type(None) in typing.get_args(hint) and text == "":
        return None
    target = options[0]
    try:
        if typing.get_origin(hint) is Mapping:
            return msgspec.json.decode(text, type=dict[str, str])
        if target is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if target in (int, float, str):
            return target(text)
        if typing.get_origin(hint) is typing.Literal:
            allowed = typing.get_args(hint)
            if text not in allowed:
                raise ValueError
            return text
    except (ValueError, KeyError, msgspec.MsgspecError):
        pass
    expected = "a JSON object of texts" if "Mapping" in str(hint) else getattr(target, "__name__", hint)
    # What a dataclass leaves out of its repr is, or may hold, a secret.
    raise SettingError(f"{name}{f'={text!r}' if shown else ''} cannot be used: expected {expected}")
