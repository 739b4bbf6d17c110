"""A first configuration from data files alone: commented YAML that runs, with every assumption written beside the key it decided.

There are no prompts. An assumption is a comment that begins with ``ASSUMED``; a decision that only the user can make is one that begins
with ``DECIDE``, and until it is made the configuration avoids everything that depends on it (objective ``erm`` reads no trusted source).
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dora_core.config.data import DataConfig
from dora_core.data.acceptance import Wanted
from dora_core.data.presets import find_preset
from dora_core.data.preview import ROWS, Progress, preview_data
from dora_core.data.previewed import Preview
from dora_core.errors import DataError
from dora_core.losses import parse_loss
from dora_core.strict_model import NAME_PATTERN
from flows.config.found_inputs import Found, look_at, look_at_all

PEOPLE = re.compile(
    r"(humans?|people|persons?|experts?|gold|golden|trusted|annotators?|writers?|authors?|labell?ers?)([-_. /].*)?", re.IGNORECASE
)
"""Names of sources that are probably people."""
SOURCES_SHOWN = 12
CHARS_PER_TOKEN = 3
"""A low estimate, so that the token limits truncate almost no text."""


@dataclass(frozen=True)
class Starter:
    """Text of the configuration, its preview, assumptions and open decisions."""

    text: str
    data: DataConfig
    preview: Preview
    wanted: Wanted
    is_trusted: bool
    """Whether a trusted source or trusted responses could be named."""
    assumed: tuple[str, ...]
    decide: tuple[str, ...]


def starter(
    paths: Sequence[str],
    golden: Sequence[str] = (),
    *,
    folder: Path,
    rows: int | None = ROWS,
    progress: Progress = lambda what, done, total: None,
) -> Starter:
    """Inspect inputs and write a configuration for them.

    Args:
        paths: files, folders or dataset names.
        golden: inputs that are trusted, whatever they look like.
        folder: where the configuration will lie; files below it get relative paths.
        rows: most rows of an input that are counted.

    Raises:
        DataError: an input cannot be read, or its mapping is ambiguous; the hint has the lines to write.
    """
    found = [*(item for path in paths for item in look_at_all(path, several=len(paths) > 1))]
    found += [look_at(path, content="golden") for path in golden]
    train = [item for item in found if item.content == "train"]
    if not train:
        kinds = ", ".join(f"{item.path} is {'trusted responses' if item.content == 'golden' else 'evaluation data'}" for item in found)
        raise DataError(f"no input holds preference data: {kinds}", hint="give a file with pairs, lists with rewards, or approvals as well")
    data = DataConfig.model_validate(_data(found) | {"golden_sources": ["human"]})
    preview, _, _ = preview_data(data, rows=rows, shown=0, suspect=False, progress=progress)
    refused = next((item for item in preview.inputs if item.refused), None)
    if refused is not None:
        raise DataError(refused.refused, hint=refused.hint)
    return _Writer(found, data, preview, folder, rows).starter()


def _data(found: Sequence[Found]) -> dict[str, Any]:
    sections: dict[str, list[dict[str, Any]]] = {}
    for item in found:
        entry = {"path": item.path, **item.keys}
        if item.content != "golden" and not item.resolved.names_sources:
            entry["source"] = title(item.path)
        sections.setdefault(item.content, []).append(entry)
    return dict(sections)


_GENERIC = re.compile(
    r"(train|test|data|dataset|default|file|part|shard|validation|valid|val|dev|eval)?([-_.]?\d+)*(-of-\d+)?", re.IGNORECASE
)
"""File names without information about their content."""
RACE_PREFERENCES = 200
"""Preferences between trusted responses from which on ``objective: auto`` is written: fewer hardly tell its candidates apart."""


def title(path: str) -> str:
    """Return a short name for an input: that of its file, or of the folder above it where the file is called ``train-00000-of-00001``."""
    file = Path(path)
    stem = file.name.split(".")[0]
    return _name(file.parent.name if _GENERIC.fullmatch(stem) and file.parent.name else stem)


def _name(text: str) -> str:
    """Return a name that the configuration accepts."""
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:64]
    return name if re.fullmatch(NAME_PATTERN, name) else "data"


class _Writer:
    """Writer of the YAML text; also collects the assumptions."""

    def __init__(self, found: Sequence[Found], data: DataConfig, preview: Preview, folder: Path, rows: int | None):
        self.found, self.preview, self.folder, self.rows = found, preview, folder.resolve(), rows
        self.assumed: list[str] = []
        self.decide: list[str] = []
        self.counts = preview.total
        self.names = [name for name in self.counts.sources if not name.startswith("(")]
        self.has_golden_data = any(item.content == "golden" for item in found)
        self.golden, self.named = self._golden_sources()
        self.data = data.evolve(golden_sources=self.golden, split_by="prompt" if data.eval else "question")
        self.loss = "kto" if self.counts.approved or self.counts.disapproved else "dpo"  # kto reads pairs too, dpo no single responses
        others = [name for name in self.counts.sources if name not in self.golden]
        self.estimable = self.named and bool(others) if not self.has_golden_data else bool(self.counts.sources)
        self.golden_preferences = sum(self.counts.sources[name].among for name in self.golden if name in self.counts.sources)
        races = self.loss == "dpo" and self.golden_preferences >= RACE_PREFERENCES
        self.objective = ("auto" if races else "dora") if self.estimable else "erm"

    def _golden_sources(self) -> tuple[list[str], bool]:
        """Return the trusted sources, and whether they were found by name or `golden` data rather than by frequency."""
        people = [name for name in self.names if PEOPLE.fullmatch(name)]
        if (people and len(people) < len(self.names)) or (people and self.has_golden_data):
            self.assumed.append(f"trusted: {', '.join(people)}, by name")
            return people, True
        if self.has_golden_data or not self.names:
            return ["human"], self.has_golden_data
        seen = self.counts.sources
        return [min(self.names, key=lambda name: (seen[name].responses, -seen[name].preferred))], False

    def starter(self) -> Starter:
        for item in self.found:
            for comment in item.comments:
                (self.assumed if comment.startswith("ASSUMED") else self.decide).append(f"{item.path}: {comment.partition(' ')[2]}")
        text = "\n".join(self._lines()) + "\n"
        wanted = Wanted(self.objective, uses_factors=self.objective != "erm", loss=parse_loss(self.loss))
        preview, _, _ = preview_data(self.data, wanted, rows=self.rows)
        return Starter(text, self.data, preview, wanted, self.named, tuple(self.assumed), tuple(self.decide))

    def _lines(self) -> Iterator[str]:
        yield "# Written by `dora init` from the data alone. ASSUMED: an assumption; DECIDE: a decision that only you can make."
        yield "#   dora data preview -c THIS_FILE        how each input is read, with three records"
        yield "#   dora realign -c THIS_FILE --dry-run   the plan"
        yield "# Keys that are not here have their defaults, described in dora_core/config/ and flows/config/models.py."
        yield ""
        yield f"project: {title(self.found[0].path)}"
        yield ""
        yield "data:"
        for content in ("train", "eval", "golden"):
            items = [(item, seen) for item, seen in zip(self._in_order(), self.preview.inputs, strict=True) if item.content == content]
            if items:
                yield f"  {content}:"
            for item, seen in items:
                yield from self._input(item, seen)
        yield from self._trusted()
        if "eval" not in (item.content for item in self.found):
            by_column = self.counts.splits.get("eval") and any(
                item.resolved.adapter.columns.split or "split" in item.resolved.left.used for item in self.found
            )
            how = (
                "the split column decides; this share only where it is empty"
                if by_column
                else "of the prompts, chosen by hash; or give data.eval"
            )
            yield f"  holdout_fraction: 0.1      # {how}"
            yield "  split_by: question         # prompts that differ only in system message, white space or later turns stay in one split"
        yield ""
        yield from self._method()

    def _in_order(self) -> list[Found]:
        return [item for content in ("train", "eval", "golden") for item in self.found if item.content == content]

    def _input(self, item: Found, seen: Any) -> Iterator[str]:
        path = Path(item.path)
        inside = path.is_absolute() and path.is_relative_to(self.folder)
        written = str(path.relative_to(self.folder)) if inside else item.path
        whole = "" if seen.complete else " (of the first rows)"
        yield f"    - path: {_flow_text(written)}"
        counts = seen.counts
        prefs = sum(counts.preferences.values())
        what = f"{counts.records:,} records, {counts.responses:,} responses" + (f", {prefs:,} preferences" if prefs else "")
        yield f"      # {seen.reader}, shape {seen.shape}: {what}{whole}"
        preset = item.keys.get("preset")
        if preset is None:
            yield "      # columns with the canonical names, so no mapping is needed:" if not item.keys else "      # read as:"
        else:
            yield f"      preset: {preset}"
            about = " ".join((find_preset(preset).__doc__ or "").split())
            yield f"      # {about}" if about else "      # It stands for:"
        yield from (f"      #   {line}" for line in item.text.rstrip().splitlines())
        yield from (f"      # {comment}" for comment in item.comments)
        yield from (f"      {name}: {_flow_text(value)}" for name, value in item.keys.items() if name != "preset")
        if item.content != "golden" and not item.resolved.names_sources:
            name = title(item.path)
            yield f"      source: {name}"
            yield "      # ASSUMED one source for all responses, as no column names it; with such a column: columns: {source: COLUMN}"
            self.assumed.append(f"{item.path}: all responses are of one source, named {name!r}")

    def _trusted(self) -> Iterator[str]:
        listed = [f"{name} ({self.counts.sources[name].responses:,} responses)" for name in self.names[:SOURCES_SHOWN]]
        more = f", and {len(self.names) - SOURCES_SHOWN} more" if len(self.names) > SOURCES_SHOWN else ""
        yield "  # Trusted sources: alignment is towards their distribution. Sources there:"
        yield from (f"  #   {line}" for line in _wrapped(", ".join(listed) + more or "none"))
        if self.named:
            why = (
                "by name"
                if any(PEOPLE.fullmatch(name) for name in self.golden) and self.golden[0] in self.names
                else "data.golden is trusted"
            )
            yield f"  golden_sources: {_flow_text(self.golden)}      # ASSUMED {why}"
            return
        if len(self.names) < 2:
            self.decide.append("trusted responses: h compares a trusted source with another one, and there is one source alone")
            yield "  # DECIDE h compares a trusted source with another one, and there is one source alone: map a column that names the"
            yield "  # sources, or give trusted responses (prompt, response) as `golden: [{path: …}]`. Until then align.objective is erm."
            yield f"  golden_sources: {_flow_text(self.golden)}      # the key needs a name; nothing below depends on it"
            return
        self.decide.append(f"data.golden_sources: which of {', '.join(self.names[:SOURCES_SHOWN])} is trusted")
        yield "  # DECIDE which of them is trusted; no name looks like people. Until then align.objective is erm, which does not read it."
        yield from (f"  # golden_sources: [{_flow_text(name)}]" for name in self.names[:SOURCES_SHOWN])
        yield "  # The key needs a name: here the rarest source that wins most; nothing below depends on it."
        yield f"  golden_sources: {_flow_text(self.golden)}"

    def _method(self) -> Iterator[str]:
        yield "text:                         # limits that cut almost none of these texts; long ones cost time"
        yield f"  max_prompt_tokens: {_tokens(self.counts.prompt_chars.p95)}"
        yield f"  max_response_tokens: {_tokens(self.counts.response_chars.p95)}"
        yield ""
        yield "policy:"
        yield "  source: tiny                # from scratch, no download: shows that the pipeline runs. Or a Hugging Face id or folder,"
        yield "  vocab_size: 1024            # with learning rates near 1e-5 (sft) and 5e-7 (align): infra/configs/llama-8b-8gpu.yaml"
        yield ""
        if self.objective != "erm":
            yield "classifier:"
            yield "  encoder: {source: tiny, hidden_size: 64, layers: 1, heads: 4, vocab_size: 1024}"
            yield ""
        yield "sft:"
        if not self.named:
            yield "  data: best                  # each record's best response, as no source is known to be trusted; else golden"
        yield "  optimization: {epochs: 3, learning_rate: 3.0e-3}    # suits tiny"
        yield ""
        yield "align:"
        if self.loss == "kto":
            yield "  loss: {name: kto}           # single responses with an approval; bco is the other loss that takes them"
        else:
            yield "  loss: {name: dpo, beta: 0.1}"
        if self.objective == "auto":
            yield "  objective: {name: auto}     # chooses by golden preferences: all records, golden ones alone, reweighting, dora"
            self.assumed.append(f"objective: auto, as {self.golden_preferences:,} preferences are between responses of trusted sources")
        elif self.objective == "dora":
            yield "  objective: {name: dora, lambda: auto}    # auto instead of dora chooses by measuring, with enough trusted preferences"
        else:
            reason = "no source is known to be trusted" if self.names and not self.named else "it needs a trusted source and another one"
            yield f"  objective: {{name: erm}}      # h cannot be estimated: {reason}."
            yield "  # objective: {name: dora, lambda: auto}      # once that is decided; and take `sft.data: best` away"
        yield "  optimization: {epochs: 2, learning_rate: 1.0e-4}    # suits tiny"


def _tokens(chars: int) -> int:
    return min(512, max(32, -(-chars // CHARS_PER_TOKEN // 16) * 16))


def _flow_text(value: Any) -> str:
    """A value as YAML on one line."""
    return str(yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, width=10_000)).removesuffix("\n...\n").strip()


def _wrapped(text: str, width: int = 120) -> list[str]:
    """Return ``text`` as lines, broken after commas only."""
    return [line.replace("\0", " ") for line in textwrap.wrap(text.replace(" ", "\0").replace(",\0", ", "), width)]
