"""Searches of `dora tune`: from options or the last search to a validated one; its plan; its outcome as tables and lines to copy."""

from __future__ import annotations

from collections.abc import Sequence

from dora_core.errors import ConfigError
from dora_core.strict_model import StrictModel
from flows.cli.output import Out
from flows.cli.run import run
from flows.config.models import RealignConfig
from flows.config.search_space import FORMS, SearchConfig, parse_dimensions
from flows.planning.tune_plan import plan_search, trial_configs
from infra.settings import Settings, apply_environment
from infra.store.store import Store, sha256_of

TRIALS = 20


class RememberedSearch(StrictModel):
    """A project's last search, ``projects/<project>/search.json``, and the digest of the configuration that it varied."""

    search: SearchConfig
    config: str


def find_search(
    config: RealignConfig, store: Store, over: Sequence[str], trials: int | None, minutes: float | None, resume: bool
) -> SearchConfig:
    """Return the search of the options, or the last one of the project; the configuration of every trial is valid.

    Raises:
        ConfigError: neither or both; the configuration is not that of the last search; a space or a value is not allowed.
    """
    if resume:
        if over or trials is not None:
            raise ConfigError("--resume goes on with the last search as it is", hint="leave out --over and --trials, or leave out --resume")
        search = _last(config, store)
        search = search if minutes is None else search.evolve(minutes=minutes)
    elif not over:
        raise ConfigError("a search needs at least one --over KEY=SPACE", hint=f"{FORMS}; or --resume goes on with the last search")
    else:
        search = SearchConfig(dimensions=parse_dimensions(over), trials=trials or TRIALS, minutes=minutes)
    trial_configs(config, search)  # refused here, before anything starts
    return search


def _last(config: RealignConfig, store: Store) -> SearchConfig:
    content = store.read_json(_file(config.project))
    if content is None:
        raise ConfigError(f"{config.project} has no search to go on with", hint="begin one: --over KEY=SPACE --trials 20")
    last = RememberedSearch.model_validate(content)
    if last.config != _digest(config):
        raise ConfigError(
            f"the configuration is not the one that the last search of {config.project} varied, so its measurements do not belong to it",
            hint="use the same file and --set options, or begin another search with --over; what both have in common is reused",
        )
    return last.search


def remember(store: Store, config: RealignConfig, search: SearchConfig) -> None:
    """Record the search for ``--resume``."""
    store.write_json(_file(config.project), RememberedSearch(search=search, config=_digest(config)).model_dump(mode="json"))


def _file(project: str) -> str:
    return f"projects/{project}/search.json"


def _digest(config: RealignConfig) -> str:
    """Of everything but resources."""
    return sha256_of(config.model_dump(mode="json", by_alias=True, exclude={"execution"}))


def run_search(config: RealignConfig, search: SearchConfig, *, dry_run: bool, as_json: bool, verbose: bool) -> None:
    """Run the search, or print its plan and its trials."""
    if not dry_run:
        run(config, as_json=as_json, verbose=verbose, search=search)
        return
    settings, out = Settings(), Out(as_json)
    apply_environment(settings)
    plan, specs = plan_search(config, search, Store(settings.store_uri))
    out.plan(plan)
    keys = [dimension.key for dimension in search.dimensions]
    out.table(["trial", *keys], [[name, *(str(values.get(key, "as it is")) for key in keys)] for name, values in specs.values.items()])
    out.document(plan.to_json() | {"trials": specs.values})
