"""Searches from options and from memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from dora_core.errors import ConfigError
from flows.cli.searches import TRIALS, find_search, remember
from flows.config.loading import load_config
from infra.store.store import Store

OVER = ["align.loss.beta=0.05,0.1"]


def test_the_last_search_is_found_with_another_budget(config_file: Path, tmp_path: Path) -> None:
    store, config = Store(str(tmp_path / "store")), load_config(config_file)
    search = find_search(config, store, OVER, None, None, resume=False)
    assert (search.trials, search.minutes) == (TRIALS, None)
    remember(store, config, search)
    assert find_search(config, store, [], None, None, resume=True) == search
    assert find_search(config, store, [], None, 5.0, resume=True) == search.evolve(minutes=5.0)


def test_another_configuration_is_another_search(config_file: Path, tmp_path: Path) -> None:
    store, config = Store(str(tmp_path / "store")), load_config(config_file)
    remember(store, config, find_search(config, store, OVER, 2, None, resume=False))
    faster = load_config(config_file, ["execution.align.workers=1"])
    assert find_search(faster, store, [], None, None, resume=True).trials == 2, "resources do not change a measurement"
    other = load_config(config_file, ["align.optimization.batch_size=4"])
    with pytest.raises(ConfigError, match=r"is not the one that the last search of .* varied"):
        find_search(other, store, [], None, None, resume=True)
