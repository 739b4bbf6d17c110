"""Loading and building models: any Hugging Face model by id or folder, and the embedded tiny ones built on the data.

Weights are read and written as safetensors only; code from a model repository runs only with ``trust_remote_code`` and a
pinned revision (``ModelConfig`` enforces both). With the tiny models a laptop without a network runs the whole pipeline, on the code
path of an 8B model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dora_core.config.method import ModelConfig, TextConfig
from dora_core.data.chat_format import ChatFormat, describe_chat, end_tokens
from dora_core.errors import ModelError
from dora_core.models.adapters import base_of, merged_adapter
from dora_core.models.model_settings import as_it_was, remember, settle
from dora_core.models.parts import text_body
from dora_core.models.portable import make_portable

SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "cls_token": "<cls>", "sep_token": "<sep>"}


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over ``texts``: no text is out of vocabulary, and decoding gives back every byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)


def build_encoder(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, max_positions: int = 512) -> PreTrainedModel:
    """A small BERT with random weights (seed the generator first) for ``tokenizer``'s vocabulary."""
    bert = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.hidden_size,
        max_position_embeddings=max_positions,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.BertModel(bert, add_pooling_layer=False)


def build_policy(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, max_positions: int) -> PreTrainedModel:
    """A small Llama-architecture language model with random weights (seed the generator first)."""
    llama = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        intermediate_size=3 * config.hidden_size,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return transformers.LlamaForCausalLM(llama)


def load_encoder(config: ModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A pretrained encoder and its tokenizer (not for ``tiny``, which is built on the data)."""
    return _load(transformers.AutoModel, config, torch.float32)


def load_policy(config: ModelConfig | str | Path, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, from an id, a folder, or a finished stage's ``model/`` folder.

    Its dropout is off, and an adapter in a folder of its own is merged into its base. Weights that text never passes through (a vision
    tower) are frozen.

    Raises:
        ModelError: the model cannot be loaded, or is quantised.
    """
    model, tokenizer = _load(transformers.AutoModelForCausalLM, _as_config(config), dtype)
    if model.config.get_text_config() is not model.config:
        read = {id(p) for part in (text_body(model), model.get_output_embeddings()) for p in part.parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in read)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def load_reward_model(
    config: ModelConfig | str | Path, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained sequence classifier with one output and its tokenizer.

    Raises:
        ModelError: the model cannot be loaded, its head is not in the folder, or it has another number of outputs.
    """
    config = _as_config(config)
    (model, loading), tokenizer = _load(transformers.AutoModelForSequenceClassification, config, dtype, output_loading_info=True)
    if loading["missing_keys"]:
        raise ModelError(
            f"{config.source!r} is not a reward model: its weights lack {', '.join(sorted(loading['missing_keys']))}",
            hint="name a trained …ForSequenceClassification model with one output; from any other model, the reward stage trains one",
        )
    if model.config.num_labels != 1:
        raise ModelError(
            f"{config.source!r} has {model.config.num_labels} outputs, and a reward model has one",
            hint="use a model with num_labels = 1 (a scalar score), not a classifier; the reward stage trains one on your data",
        )
    return _scorer(model, tokenizer), tokenizer


def grow_reward_model(config: ModelConfig | str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A reward model to be trained: the trunk of any model under a scalar head, random (seed the generator first) unless the model has one.

    Without dropout, so that a step's gradient does not depend on how it is spread over workers, and a resumed run ends with the same
    weights.

    Raises:
        ModelError: the model cannot be loaded, or is a classifier with another number of outputs.
    """
    config = _as_config(config)
    try:
        model, tokenizer = _load(transformers.AutoModelForSequenceClassification, config, torch.float32, labels=1)
    except RuntimeError as error:  # a trained head of another size
        outputs = load_settings(config).num_labels
        raise ModelError(
            f"{config.source!r} is a classifier with {outputs} outputs, and a reward model has one",
            hint="start from a language model, an encoder, or a reward model with num_labels = 1",
        ) from error
    return _scorer(model, tokenizer), tokenizer


def load_tokenizer(config: ModelConfig | str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of :func:`load_policy`, without the model; of an adapter without one, that of its base."""
    config = _as_config(config)
    base = _base(config)
    if base is not None and not (Path(config.source).expanduser() / "tokenizer_config.json").is_file():
        return load_tokenizer(base)
    return _from_pretrained(transformers.AutoTokenizer, config)


def load_policy_tokenizer(config: ModelConfig | str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer that :func:`load_policy` returns, which has a padding token."""
    tokenizer = load_tokenizer(config)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def reward_model_settings(config: ModelConfig) -> tuple[dict[str, Any], PreTrainedTokenizerBase]:
    """Changes to a model's configuration that :func:`grow_reward_model` makes, and the tokenizer that it returns."""
    tokenizer = _with_edges(load_tokenizer(config))
    return {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id, "use_cache": False}, tokenizer


def load_settings(config: ModelConfig | str | Path) -> PretrainedConfig:
    """The configuration of a model, without its weights; of an adapter, that of its base."""
    config = _as_config(config)
    return _from_pretrained(transformers.AutoConfig, _base(config) or config)


def load_generation_settings(config: ModelConfig | str | Path, settings: PretrainedConfig) -> GenerationConfig:
    """The generation configuration that transformers loads with the weights; made from ``settings`` where there is no file of it."""
    config = _as_config(config)
    config = _base(config) or config
    try:
        return GenerationConfig.from_pretrained(config.source, revision=config.revision)
    except OSError:
        return GenerationConfig.from_model_config(settings)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a Hugging Face folder, readable by earlier releases of transformers (``portable.py``): safetensors, configurations, tokenizer.

    The generation configuration declares every token that ends a response, so that a server stops where training taught the model to.
    The configuration has the dropout that the model started with.
    Safetensors are written for their owner only; they get the mode of the configuration, which follows the umask.
    """
    declare_ends(model, tokenizer)
    with as_it_was(model):
        model.save_pretrained(folder, safe_serialization=True)
    finish_folder(tokenizer, folder)


def declare_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Name every token that ends a response in the model's generation configuration."""
    if model.can_generate():
        ends = sorted(end_tokens(tokenizer, model.generation_config, _chat_format(tokenizer)))
        if len(ends) > 1:
            model.generation_config.eos_token_id = ends


def finish_folder(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer beside saved weights; other releases and other users can read the folder."""
    tokenizer.save_pretrained(folder)
    make_portable(folder)
    mode = (folder / "config.json").stat().st_mode & 0o777
    for weights in folder.glob("*.safetensors"):
        weights.chmod(mode)


def _load(
    auto: Any, config: ModelConfig, dtype: torch.dtype, *, labels: int | None = None, **settings: Any
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Model of the class ``auto`` chooses for the folder or id, and the tokenizer."""
    if (base := _base(config)) is not None:
        return _merged(auto, config, base, dtype)
    about = _from_pretrained(transformers.AutoConfig, config)
    origin = settle(about, config.source)
    if labels is not None:
        about.num_labels = labels
    loaded = _from_pretrained(auto, config, config=about, dtype=dtype, use_safetensors=True, **settings)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            f"{config.source!r} is an adapter beside a configuration: loaded as it is, nothing of it would be trained",
            hint="give a folder with the adapter alone (adapter_config.json names its base), or merge it first",
        )
    remember(model, origin)
    return loaded, _from_pretrained(transformers.AutoTokenizer, config)


def _merged(auto: Any, config: ModelConfig, base: ModelConfig, dtype: torch.dtype) -> tuple[Any, PreTrainedTokenizerBase]:
    """The base with the adapter of ``config``, merged in float32. Its tokenizer is the adapter's where that has one."""
    if auto is not transformers.AutoModelForCausalLM:
        raise ModelError(
            f"{config.source!r} is an adapter, and only a policy may be one", hint="merge it into its base, and give the merged folder"
        )
    model, _ = _load(auto, base, torch.float32)
    merged = merged_adapter(model, Path(config.source).expanduser())
    return merged.requires_grad_(True).to(dtype), load_tokenizer(config)  # peft froze the base


def _base(config: ModelConfig) -> ModelConfig | None:
    """The base of an adapter's folder, at the revision that the plan found; None for any other model."""
    folder = Path(config.source).expanduser()
    found = base_of(folder) if folder.is_dir() else None
    if found is None:
        return None
    source, revision = found
    return ModelConfig(source=source, revision=config.base_revision or revision)


def _from_pretrained(auto: Any, model: ModelConfig, **settings: Any) -> Any:
    try:
        return auto.from_pretrained(model.source, revision=model.revision, trust_remote_code=model.trust_remote_code, **settings)
    except (OSError, ValueError, ImportError) as error:
        raise _cannot_load(model, error) from error


def _scorer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Prepare ``model`` for padded rows of ``data.encoding.Encoder``."""
    config = model.config.get_text_config()
    config.pad_token_id = _with_edges(tokenizer).pad_token_id  # a decoder reads the last token that is another one
    config.use_cache = False
    return model


def _with_edges(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Tokens for the edges of a text and for padding. An encoder's tokenizer has no BOS and EOS: its CLS and SEP take their places."""
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.cls_token
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def _chat_format(tokenizer: PreTrainedTokenizerBase) -> ChatFormat | None:
    """Description of the tokenizer's chat template; None without one that can be used."""
    if not tokenizer.chat_template:
        return None
    try:
        return describe_chat(tokenizer, TextConfig())[1]
    except ModelError:
        return None  # a run that uses the template refuses it before anything is trained


def _as_config(model: ModelConfig | str | Path) -> ModelConfig:
    return model if isinstance(model, ModelConfig) else ModelConfig(source=str(model))


def _cannot_load(config: ModelConfig, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"cannot load model {config.source!r}: {reason}",
        hint="give a Hugging Face id (online, or in the local cache), a folder with config.json and *.safetensors, or `tiny`",
    )
