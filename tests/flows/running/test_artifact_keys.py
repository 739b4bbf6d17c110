"""Keys of Prefect's artifacts."""

from __future__ import annotations

import re

from prefect.artifacts import Artifact

from flows.running.artifact_keys import artifact_key


def test_different_texts_have_different_keys() -> None:
    texts = ["realign-a-b", "realign-a.b", "realign-a_b", "realign-A-b", "realign-ä-b", "realign-é-b"]
    keys = [artifact_key(text) for text in texts]
    assert len(set(keys)) == len(texts) and keys[0] == "realign-a-b"
    assert all(re.fullmatch(r"[a-z0-9-]+", key) for key in keys)
    assert artifact_key("progress-judge start") == "progress-judge-start"
    assert Artifact(type="markdown", key=keys[4]).key == keys[4], "Prefect takes it"
