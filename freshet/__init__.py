"""Fresh embeddings for shops, computed on the stream: the reader, its index and the producer.

Both are imported when they are asked for, so that `import freshet` loads no client library, and neither
torch nor faiss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freshet.errors import FreshetError
    from freshet.reader import Reader
    from freshet.stream.live_index import LiveIndex
    from freshet.stream.producer import Producer

__all__ = ["FreshetError", "LiveIndex", "Producer", "Reader"]

_HOME = {
    "FreshetError": "freshet.errors",
    "LiveIndex": "freshet.stream.live_index",
    "Producer": "freshet.stream.producer",
    "Reader": "freshet.reader",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'freshet' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
