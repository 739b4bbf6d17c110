"""Registry, recognition and expansion of presets."""

from __future__ import annotations

import json

import pytest
import yaml

from dora_core.config.adapter import Adapter
from dora_core.data.presets import PRESETS, Preset, Variant, expand, recognise, register_preset, registered_presets
from dora_core.data.presets.base import as_text, is_unpaired
from dora_core.errors import ConfigError, DataError
from tests.dora_core.data.adapter.reading import assert_case
from tests.dora_core.data.cases import CASES, Case, all_cases

NAMES = [
    "hh",
    "ultrafeedback",
    "binarized",
    "orca",
    "nectar",
    "shp",
    "helpsteer2",
    "helpsteer3",
    "pku_saferlhf",
    "summarize",
    "webgpt",
    "oasst",
    "arena",
    "kto",
    "sharegpt",
    "alpaca_pref",
    "openai_preference",
    "tulu3",
    "argilla",
    "distilabel",
    "label_studio",
    "trl",
    "skywork",
    "halos",
    "unified_feedback",
    "stack_exchange",
    "rlhflow",
    "simpo",
    "ms_swift",
    "axolotl",
    "reward_bench",
    "helpsteer2_preference",
    "sft_messages",
    "alpaca",
    "hh_chosen",
]


@pytest.fixture
def registry():
    before = dict(PRESETS)
    yield
    PRESETS.clear()
    PRESETS.update(before)


def test_every_promised_preset_is_there_and_says_what_it_is():
    presets = registered_presets()
    assert set(NAMES) <= presets.keys()
    assert all(presets[name].__doc__ for name in presets)


@pytest.mark.parametrize("name", NAMES)
def test_expansion_is_an_adapter_and_its_text_says_the_same(name):
    found = expand(name)
    assert Adapter.model_validate({**yaml.safe_load(found.text), "preset": "none"}) == found.adapter


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in all_cases()])
def test_exactly_one_preset_fits_a_published_schema(case):
    assert recognise(case.columns, case.rows, golden=case.golden) == ([case.preset] if case.preset else [])


def test_every_preset_has_a_generated_schema():
    assert {case.preset for case in all_cases()} >= set(NAMES)


def test_values_decide_between_equal_columns():
    assert recognise(["chosen", "rejected"], [{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}]) == [
        "hh"
    ]
    assert recognise(["chosen", "rejected"], [{"chosen": "a", "rejected": "b"}]) == ["trl"]
    assert recognise(["chosen", "rejected"], [{"chosen": 1, "rejected": 2}]) == []


def test_keys_beside_a_preset_override_it_and_lists_are_joined():
    case = CASES["ultrafeedback"]()
    own = Adapter.model_validate(
        {"columns": {"rewards": "completions[].other"}, "carry": ["models"], "ignore": ["source"], "messages": {"reasoning": "drop"}}
    )
    adapter = expand("ultrafeedback", own, case.columns, case.rows).adapter
    assert adapter.columns.rewards == "completions[].other" and adapter.columns.responses == "completions[].response"
    assert (adapter.carry, adapter.ignore, adapter.messages.reasoning) == (["models"], ["source"], "drop")


def test_override_that_contradicts_the_shape_is_an_error():
    own = Adapter.model_validate({"label": {"column": "winner", "a": 1, "b": 2}})
    with pytest.raises(ConfigError, match="do not fit together"):
        expand("ultrafeedback", own)


def test_preset_that_does_not_fit_names_what_is_wrong():
    with pytest.raises(DataError, match="no column answers"):
        expand("nectar", None, ["prompt"], [{"prompt": "q"}])
    with pytest.raises(DataError, match="answers is not structs"):
        expand("nectar", None, ["prompt", "answers"], [{"prompt": "q", "answers": ["a"]}])


def test_own_preset_is_registered_recognised_and_expanded(registry):
    @register_preset
    class Mine(Preset):
        """my-lab/data."""

        name = "mine"
        variants = (
            Variant(
                needs={"q": "text", "good": "text", "bad": "text"},
                adapter={"shape": "pair", "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}},
            ),
        )

    columns, rows = ["q", "good", "bad"], [{"q": "1", "good": "2", "bad": "3"}]
    assert recognise(columns, rows) == ["mine"]
    assert expand("mine", None, columns, rows).text == as_text(Mine.variants[0].adapter)

    @register_preset
    class Also(Preset):
        """my-lab/data again."""

        name = "also"
        variants = Mine.variants

    assert recognise(columns, rows) == ["also", "mine"]


def test_registration_is_checked(registry):
    class Nameless(Preset):
        variants = (Variant(needs={}, adapter={}),)

    class Reserved(Nameless):
        name = "auto"

    class Taken(Nameless):
        name = "hh"

    class Wrong(Preset):
        name = "wrong"
        variants = (Variant(needs={"x": "prose"}, adapter={}),)

    for preset, error in ((Nameless, TypeError), (Reserved, ValueError), (Taken, ValueError), (Wrong, TypeError)):
        with pytest.raises(error):
            register_preset(preset)


def test_inputs_are_known_to_be_unpaired_by_shape_label_or_preset():
    label = {"column": "ok", "true": [True], "false": [False]}
    unpaired = [{"shape": "unpaired"}, {"label": label}, {"preset": "kto"}]
    assert all(is_unpaired(Adapter.model_validate(keys)) for keys in unpaired)
    others = [{}, {"preset": "none"}, {"shape": "pair"}, {"preset": "hh"}, {"preset": "halos"}, {"preset": "kto", "shape": "pair"}]
    assert not any(is_unpaired(Adapter.model_validate(keys)) for keys in others), "halos has pairs too; a shape overrides its preset"


WRITTEN = [
    "arena",
    "helpsteer3",
    "webgpt",
    "summarize",
    "binarized",
    "sharegpt",
    "openai_preference",
    "axolotl",
    "label_studio",
    "unified_feedback",
]


@pytest.mark.parametrize("name", WRITTEN)
def test_schema_is_recognised_and_read_where_a_csv_export_wrote_its_values_as_text(name):
    """Structs, lists and numbers of any schema as a CSV or SQL export has them: JSON text and decimal text."""

    def text(value):
        return value if value is None or isinstance(value, str) else json.dumps(value)

    case = CASES[name]()
    assert_case(Case(name, [{key: text(value) for key, value in row.items()} for row in case.rows], case.truth, case.preset, case.adapter))


@pytest.mark.parametrize(
    ("values", "fits"), [([True, False], True), ([1, 0], True), (["good", "bad"], True), ([1, 4], False), (["-1", "1"], False)]
)
def test_grades_are_no_approvals(values, fits):
    rows = [{"prompt": "q", "completion": "a", "label": value} for value in values]
    assert recognise(list(rows[0]), rows) == (["kto"] if fits else [])
