"""Whose answers a cached stage holds: the address of a served model is not in the digest, but the answers carry it."""

from __future__ import annotations

from infra.store.store import Store
from tasks.runtime.spec import StageSpec


def answered_elsewhere(spec: StageSpec, store: Store) -> str | None:
    """Return a note if the answers of a finished stage come from another server than the one that is configured now."""
    if spec.execution.endpoint is None:
        return None
    result, url = store.read_result(spec.stage, spec.digest()), spec.execution.endpoint.url.rstrip("/")
    origins = [] if result is None else list(result["facts"].get("origins") or {})
    others = sorted({address for origin in origins if (address := origin.partition(" ")[0]) not in (url, "unknown")})
    if not others:
        return None
    place = store.local_root / spec.stage / spec.digest()
    return f"{spec.stage}: its answers are kept ones of {', '.join(others)}, not of {url}; to ask {url}, change the seed or delete {place}"
