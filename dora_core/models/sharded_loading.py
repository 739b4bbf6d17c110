"""Reading one rank's rows of a model's weights, so that no process holds the whole model.

The model is built on the meta device. Of every parameter a rank then reads its rows of dimension 0 alone (``Shard(0)``, as FSDP2 splits
it) from the safetensors files, in the dtype asked for, straight onto the device. Names and layouts of the files are those of the
transformers library, whose own loader renames, merges and initialises: a parameter that it makes of several tensors (merged experts,
split projections) is read whole, one layer at a time, and cut afterwards. Buffers that are in no file (rotary frequencies) are computed by
the model's own initialisation.

Peak memory: the rank's share and, for models with converted weights, one layer. Cost: each rank reads its rows once; converted layers are
read by all ranks. :class:`CannotShard` names what has to be loaded in the plain way (``loading.py``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import Shard
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, convert_and_load_state_dict_in_model, rename_source_key
from transformers.modeling_utils import LoadStateDictConfig
from transformers.models.auto.auto_factory import _get_model_class
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files
from transformers.utils.loading_report import LoadStateDictInfo

from dora_core.config.method import ModelConfig
from dora_core.errors import ModelError
from dora_core.models.adapters import base_of

_BLOCK = re.compile(r"^(.*?\.\d+)\.")
"""Prefix of a parameter in a repeated block: ``model.layers.3``."""


class CannotShard(ModelError):
    """The weights of this model cannot be read by rows; ``message`` is the reason. Load it whole."""


@dataclass(frozen=True)
class TensorShare:
    """One rank's part, the ``rank``-th of ``ranks`` equal ones, of the parameters that tensor parallelism splits; ``dimensions`` are
    theirs (``tensor_plan.py``)."""

    rank: int
    ranks: int
    dimensions: Mapping[str, int]


@dataclass(frozen=True)
class Share:
    """One rank's part of every parameter: chunk ``rank`` of ``ranks`` along dimension 0, as ``torch.chunk`` cuts it.

    With ``tensor`` it is that chunk of the part that the rank has in its tensor group.
    """

    rank: int
    ranks: int
    tensor: TensorShare | None = None

    def rows(self, size: int) -> slice:
        """Rows of a dimension of ``size``; empty where it has fewer chunks than there are ranks."""
        count, start = Shard.local_shard_size_and_offset(size, self.ranks, self.rank)
        return slice(start, start + count)

    def part(self, name: str, shape: Sequence[int]) -> tuple[slice, ...]:
        """The rank's part of the parameter ``name``, a slice for each dimension."""
        cuts = [slice(0, size) for size in shape]
        if self.tensor is not None and (split := self.tensor.dimensions.get(name)) is not None:
            width = shape[split] // self.tensor.ranks
            cuts[split] = slice(width * self.tensor.rank, width * (self.tensor.rank + 1))
        if cuts:
            first, rows = cuts[0], self.rows(cuts[0].stop - cuts[0].start)
            cuts[0] = slice(first.start + rows.start, first.start + rows.stop)
        return tuple(cuts)

    def of(self, tensor: Tensor) -> Tensor:
        """The rank's rows as a tensor of their own, so that the rest can be freed."""
        return tensor[self.rows(len(tensor))].clone()


@dataclass(frozen=True)
class ShardedModel:
    """A model whose parameters are placeholders and whose buffers are real, and one rank's rows of each parameter.

    A placeholder has the shape and dtype of the parameter, one element of storage on the CPU, and the value NaN: adapters can be added as
    to any model, and what is computed from missing weights can be recognised.
    """

    model: PreTrainedModel
    rows: dict[nn.Parameter, Tensor]


def load_sharded(
    kind: type[PreTrainedModel], settled: Any, config: ModelConfig, share: Share, dtype: torch.dtype, device: torch.device
) -> ShardedModel:
    """Build a model of ``kind`` and read ``share`` of the weights of ``config`` onto ``device``.

    Args:
        settled: its configuration (:func:`read_config`).
        dtype: of all parameters, except those that the model keeps in float32.

    Raises:
        CannotShard: load the model whole instead.
    """
    model = build_on_meta(kind, settled, dtype)
    source = WeightSource.of(model, weight_files(config))
    _refuse_separate_tied_weights(model, source)
    shapes = {name: p.shape for name, p in model.named_parameters(remove_duplicate=False)}
    _read_rows(model, source, share, shapes, dtype, device)
    finish_loading(model, dtype, device)
    model.eval()
    model.generation_config = _generation_config(config) or model.generation_config
    return ShardedModel(model, _take_rows(model, shapes, share))


def read_config(config: ModelConfig, **settings: Any) -> Any:
    """The model's configuration, without its weights.

    Raises:
        CannotShard: the folder holds adapters, quantised weights, or code of its own.
    """
    if config.trust_remote_code:
        raise CannotShard("code from the model's repository (trust_remote_code) loads its own weights")
    folder = Path(config.source).expanduser()
    if folder.is_dir() and base_of(folder) is not None:
        raise CannotShard("it is an adapter, to be merged into its base")
    try:
        settled = transformers.AutoConfig.from_pretrained(config.source, revision=config.revision, **settings)
    except (OSError, ValueError) as error:
        raise CannotShard(f"its config.json cannot be read ({str(error).strip().splitlines()[0]})") from error
    if getattr(settled, "quantization_config", None) is not None:
        raise CannotShard("its weights are quantised")
    if settled.get_text_config() is not settled:
        raise CannotShard("it is multimodal")
    return settled


def model_class(auto: Any, settled: Any) -> type[PreTrainedModel]:
    """The class that ``auto`` (``transformers.AutoModelForCausalLM`` or another auto class) chooses for a configuration."""
    try:
        kind: type[PreTrainedModel] = _get_model_class(settled, auto._model_mapping)
    except KeyError:
        raise CannotShard(f"{type(settled).__name__} has no {auto.__name__}") from None
    return kind


def build_on_meta(kind: type[PreTrainedModel], settled: Any, dtype: torch.dtype) -> PreTrainedModel:
    """A model without storage, in ``dtype`` except where the model keeps float32."""
    with ExitStack() as contexts:
        for context in kind.get_init_context(dtype, False, False, False):
            contexts.enter_context(context)
        return kind(settled)


def stored_dtypes(config: ModelConfig) -> set[str]:
    """Dtypes of the tensors in a model's files, as safetensors names them: F32, BF16."""
    found = set()
    for file in weight_files(config):
        with safe_open(file, framework="pt") as opened:
            found |= {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118  # not a dictionary
    return found


def weight_files(config: ModelConfig) -> list[Path]:
    """The safetensors files of a model, one or several with an index.

    Raises:
        CannotShard: the folder or repository has none.
    """

    def find(name: str) -> str | None:
        try:
            found: str | None = cached_file(config.source, name, revision=config.revision, _raise_exceptions_for_missing_entries=False)
        except (OSError, ValueError) as error:
            raise CannotShard(f"its files cannot be found ({str(error).strip().splitlines()[0]})") from error
        return found

    if single := find(SAFE_WEIGHTS_NAME):
        return [Path(single)]
    if index := find(SAFE_WEIGHTS_INDEX_NAME):
        parts, _ = get_checkpoint_shard_files(config.source, index, revision=config.revision)
        return [Path(part) for part in parts]
    raise CannotShard(f"it has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}")


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file, or a part of it; read when indexed, by the transformers loader."""

    file: Path
    name: str
    part: tuple[slice, ...] | None = None

    def get_shape(self) -> list[int]:
        with safe_open(self.file, framework="pt") as opened:
            shape: list[int] = opened.get_slice(self.name).get_shape()
        return shape if self.part is None else [cut.stop - cut.start for cut in self.part]

    def __getitem__(self, index: Any) -> Tensor:
        # The file is closed again at once: pages of a mapping that stays open count as memory of the process.
        with safe_open(self.file, framework="pt") as opened:
            found = opened.get_slice(self.name)
            tensor: Tensor = found[...] if self.part is None else found[self.part]
            return tensor[index].clone()


@dataclass(frozen=True)
class WeightSource:
    """Tensors of a model's files by the parameter or buffer that the transformers loader makes of them.

    Attributes:
        mapping: that loader's changes of names and layouts.
        renamed: parameter → the one tensor that it is, under another name or not.
        converted: parameter → tensors that are merged or split into it and others of its block.
    """

    mapping: list[Any]
    renamed: dict[str, Stored]
    converted: dict[str, dict[str, Stored]]

    @classmethod
    def of(cls, model: PreTrainedModel, files: Iterable[Path]) -> WeightSource:
        mapping = get_model_conversion_mapping(model, None, None)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        targets = model.state_dict()
        source = cls(mapping, {}, {})
        for file, name in _tensors(files):
            target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, targets)
            if target not in targets and name in targets:
                target, pattern = name, None
            if target not in targets:
                continue
            if pattern is None:
                source.renamed[target] = Stored(file, name)
            else:
                source.converted.setdefault(target, {})[name] = Stored(file, name)
        return source

    def inside(self, path: str) -> dict[str, Stored]:
        """Tensors of the module at a dotted path, by their names in the files."""
        return self._where(lambda target: target.startswith(f"{path}."))

    def outside(self, paths: list[str]) -> dict[str, Stored]:
        """Tensors of no module at one of ``paths``."""
        prefixes = tuple(f"{path}." for path in paths)
        return self._where(lambda target: not target.startswith(prefixes))

    def converted_blocks(self) -> list[dict[str, Stored]]:
        """Tensors that are merged or split, together where they belong to one repeated block."""
        blocks: dict[str, dict[str, Stored]] = {}
        for target, tensors in self.converted.items():
            block = _BLOCK.match(target)
            blocks.setdefault(block.group(1) if block else target, {}).update(tensors)
        return list(blocks.values())

    def load(self, model: PreTrainedModel, tensors: dict[str, Stored], dtype: torch.dtype, device: torch.device) -> None:
        """Read ``tensors`` into ``model`` with the transformers loader, which renames and converts them.

        Raises:
            CannotShard: a shape or a conversion is not the one that the model expects.
        """
        config = LoadStateDictConfig(
            dtype=dtype, dtype_plan=model._get_dtype_plan(dtype), device_map={"": device}, weight_mapping=self.mapping
        )
        with _quiet():
            loaded, _ = convert_and_load_state_dict_in_model(model, tensors, config)
        if loaded.conversion_errors or loaded.mismatched_keys:
            problem = next(iter([*loaded.conversion_errors, *(name for name, *_ in loaded.mismatched_keys)]))
            raise CannotShard(f"the transformers loader does not convert the tensors of {problem}")

    def _where(self, chosen: Callable[[str], bool]) -> dict[str, Stored]:
        found = {stored.name: stored for target, stored in self.renamed.items() if chosen(target)}
        for target, tensors in self.converted.items():
            found |= tensors if chosen(target) else {}
        return found


def _tensors(files: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # not a dictionary
                yield file, name


def _read_rows(
    model: PreTrainedModel, source: WeightSource, share: Share, shapes: dict[str, torch.Size], dtype: torch.dtype, device: torch.device
) -> None:
    """Fill ``model`` with the rank's rows: parameters that are one tensor of the files at once, converted ones block by block."""
    tensors = {stored.name: stored for stored in source.renamed.values()}
    for target, stored in source.renamed.items():
        if target not in shapes:  # a buffer
            continue
        shape = shapes[target]
        if not shape or stored.get_shape() != list(shape):
            raise CannotShard(f"{target} has shape {list(shape)}, and {stored.get_shape()} in {stored.file.name}")
        tensors[stored.name] = part = Stored(stored.file, stored.name, share.part(target, shape))
        put(model, target, nn.Parameter(torch.empty(*part.get_shape(), dtype=_get(model, target).dtype, device="meta")))
    source.load(model, tensors, dtype, device)
    left = shapes.keys() - source.renamed.keys()
    for tensors in source.converted_blocks():
        source.load(model, tensors, dtype, device)
        for target in [name for name in left if not _get(model, name).is_meta]:
            cut = nn.Parameter(_get(model, target).detach()[share.part(target, shapes[target])].clone())
            cut._is_hf_initialized = True  # type: ignore[attr-defined]  # or finish_loading would draw it anew
            put(model, target, cut)
            left.remove(target)


def finish_loading(model: PreTrainedModel, dtype: torch.dtype, device: torch.device, later: tuple[str, ...] = ()) -> None:
    """Initialise parameters and buffers that are in no file, and tie weights, as ``from_pretrained`` does.

    Args:
        later: prefixes of parameters that are on the meta device because they are read later.
    """
    missing = {name for name, tensor in model.state_dict().items() if tensor.is_meta and not name.startswith(later)}
    for name, parameter in model.named_parameters():
        if name.startswith(later) and parameter.is_meta:
            parameter._is_hf_initialized = True
    info = LoadStateDictInfo(missing, set(), set(), [], {}, set())
    model._finalize_model_loading(model, LoadStateDictConfig(dtype=dtype, device_map={"": device}), info)


def drop_weights(module: nn.Module) -> None:
    """Move the parameters of ``module`` to the meta device."""
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        put(module, name, nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False))


def _take_rows(model: PreTrainedModel, shapes: dict[str, torch.Size], share: Share) -> dict[nn.Parameter, Tensor]:
    """Take the weights out of ``model`` and leave placeholders; tied ones stay one."""
    rows: dict[nn.Parameter, Tensor] = {}
    moved: dict[nn.Parameter, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if parameter not in moved:
            shape, tensor = shapes[name], parameter.detach()
            part = [cut.stop - cut.start for cut in share.part(name, shape)]
            if tensor.shape == shape and share.ranks > 1:  # in no file: a new head, drawn whole so that all ranks draw the same
                tensor = share.of(tensor)
            if list(tensor.shape) != part:
                raise CannotShard(f"{name} was read with shape {list(tensor.shape)} instead of {list(shape)}")
            moved[parameter] = nn.Parameter(torch.full((), torch.nan, dtype=tensor.dtype).expand(shape), parameter.requires_grad)
            rows[moved[parameter]] = tensor
        put(model, name, moved[parameter])
    return rows


def _refuse_separate_tied_weights(model: PreTrainedModel, source: WeightSource) -> None:
    both = [(one, other) for one, other in model.all_tied_weights_keys.items() if one in source.renamed and other in source.renamed]
    if both:
        raise CannotShard(f"its files hold {both[0][0]} and {both[0][1]}, which are one weight by its configuration")


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar of the transformers library: a model is read in many parts."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _generation_config(config: ModelConfig) -> Any:
    try:
        return transformers.GenerationConfig.from_pretrained(config.source, revision=config.revision)
    except OSError:
        return None


def _get(model: nn.Module, name: str) -> Tensor:
    parent, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(parent), leaf)
    return tensor


def put(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Replace the parameter with this dotted name."""
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, parameter)
