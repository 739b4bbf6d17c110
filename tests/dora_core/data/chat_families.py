"""Chat templates of thirty families of models, reduced to the turns of a conversation, with tokenizers that have their special tokens.

Written for these tests after the structure of the published templates: where a beginning-of-sequence token stands, what begins and ends a
turn, what is trimmed, refused, or written around an answer. Tool definitions and long preambles are left out. The tokenizers are
byte-level with a few merges, so that tokens can merge where texts meet.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MERGES = (("\n", "\n"), ("t", "h"), ("th", "e"), (" ", "the"), ("o", "r"), ("i", "n"))


@dataclass(frozen=True)
class Family:
    """A template and its tokens.

    Attributes:
        special, others: added tokens, special or not.
        end: the token that ends a turn; expected, not declared.
        strips: special tokens that swallow the white space behind them.
        shows_day: the call in the template that shows the day.
    """

    template: str
    special: tuple[str, ...]
    end: str
    bos: str | None = None
    eos: str | None = None
    others: tuple[str, ...] = ()
    strips: tuple[str, ...] = ()
    writes_bos: bool = False
    takes_system: bool = True
    opens_thinking: bool = False
    dropped: str = ""
    shows_day: str = ""

    def tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = byte_tokenizer(self.special, self.others, bos=self.bos, eos=self.eos, strips=self.strips)
        tokenizer.chat_template = self.template
        return tokenizer


def byte_tokenizer(
    special: tuple[str, ...], others: tuple[str, ...] = (), *, bos: str | None = None, eos: str | None = None, strips: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    def written(text: str) -> str:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]

    vocabulary = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [(written(left), written(right)) for left, right in MERGES]
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False, rstrip=token in strips) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in others])
    named = {name: token for name, token in (("bos_token", bos), ("eos_token", eos)) if token}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def sentence_tokenizer(special: tuple[str, ...], *, bos: str | None, eos: str | None, legacy: bool) -> PreTrainedTokenizerFast:
    """A tokenizer in the manner of SentencePiece, which puts a space in front of a text: of every text between special tokens (Llama 2), or
    of the first alone."""
    letters = ["▁", *string.printable.replace(" ", ""), *(f"<0x{byte:02X}>" for byte in range(256)), "▁t", "▁▁"]
    vocabulary = {letter: place for place, letter in enumerate(dict.fromkeys(["<unk>", *letters]))}
    merges = [("▁", "t"), ("▁", "▁")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)


def turns(user: str, assistant: str, *, system: str = "", opening: str = "", prompt: str = "", closing: str = "") -> str:
    """A template that writes each message as ``…{C}…`` says, C being its content."""

    def case(shape: str) -> str:
        before, _, behind = shape.partition("{C}")
        trimmed = behind.startswith("|trim")
        behind = behind.removeprefix("|trim")
        return f"{{{{- {before!r} + {'m.content|trim' if trimmed else 'm.content'} + {behind!r} }}}}"

    refuse = "{{ raise_exception('System role not supported') }}"
    return (
        f"{opening}{{%- for m in messages %}}"
        f"{{%- if m.role == 'system' %}}{case(system) if system else refuse}"
        f"{{%- elif m.role == 'user' %}}{case(user)}{{%- else %}}{case(assistant)}{{%- endif %}}"
        f"{{%- endfor %}}{closing}{{%- if add_generation_prompt %}}{{{{- {prompt!r} }}}}{{%- endif %}}"
    )


IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>", "<tool_call>", "</tool_call>")
CHATML = {
    "system": "<|im_start|>system\n{C}<|im_end|>\n",
    "user": "<|im_start|>user\n{C}<|im_end|>\n",
    "assistant": "<|im_start|>assistant\n{C}<|im_end|>\n",
    "prompt": "<|im_start|>assistant\n",
}
DEFAULT_SYSTEM = "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\nYou help.<|im_end|>\n' }}{%- endif %}"
BOS = "{{- bos_token }}"
SEPARATED = (
    "{%- for m in messages %}{%- if m.role == 'user' %}{{- '<sep>' + m.content + '<sep>' }}"
    "{%- else %}{{- m.content + eos_token }}{%- endif %}{%- endfor %}"
)
"""For the tiny tokenizers of the tests."""
SPLIT_THOUGHT = (
    "{%- set thought, said = '', m.content %}{%- if '</think>' in said %}"
    "{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set said = said.split('</think>')[-1].lstrip('\n') %}"
    "{%- endif %}"
)
QWEN3 = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}" + SPLIT_THOUGHT + "{%- if loop.last or thought %}"
    "{{- '<|im_start|>assistant\n<think>\n' + thought + '\n</think>\n\n' + said.lstrip('\n') }}{%- else %}"
    "{{- '<|im_start|>assistant\n' + said }}{%- endif %}{{- '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def headed(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


LLAMA3_TURNS = {role: headed(role) + "{C}|trim<|eot_id|>" for role in ("system", "user", "assistant")} | {"prompt": headed("assistant")}
INST = (
    "{{- bos_token }}{%- set ns = namespace(system='') %}{%- for m in messages %}"
    "{%- if m.role == 'system' %}{%- set ns.system = m.content + '\n\n' %}"
    "{%- elif m.role == 'user' %}{{- '[INST] ' + (ns.system if loop.index0 < 2 else '') + m.content + ' [/INST]' }}"
    "{%- else %}{{- ' ' + m.content|trim + eos_token }}{%- endif %}{%- endfor %}"
)
GEMMA = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
GEMMA_TURNS = {
    "user": "<start_of_turn>user\n{C}|trim<end_of_turn>\n",
    "assistant": "<start_of_turn>model\n{C}|trim<end_of_turn>\n",
    "prompt": "<start_of_turn>model\n",
}
GEMMA3 = (
    "{{- bos_token }}{%- set first = '' %}{%- if messages[0].role == 'system' %}{%- set first = messages[0].content + '\n\n' %}"
    "{%- set messages = messages[1:] %}{%- endif %}{%- for m in messages %}"
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{%- endif %}"
    "{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (first if loop.first else '') + m.content|trim"
    " + '<end_of_turn>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}"
)
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
DEEPSEEK_OTHERS = ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")
DEEPSEEK_TURNS = (
    "{{- bos_token }}{%- for m in messages %}{%- if m.role == 'system' %}{{- m.content }}{%- elif m.role == 'user' %}"
    "{{- '<｜User｜>' + m.content }}{%- else %}"
    "{{- '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}{%- endif %}{%- endfor %}"
)
COHERE = ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>")


def cohere(role: str, before: str = "", behind: str = "") -> str:
    return f"<|START_OF_TURN_TOKEN|><|{role}_TOKEN|>{before}{{C}}{behind}<|END_OF_TURN_TOKEN|>"


COHERE_TURNS = {"system": cohere("SYSTEM"), "user": cohere("USER")}
GLM = (
    "[gMASK]<sop>{%- for m in messages %}{%- if m.role == 'assistant' %}"
    + SPLIT_THOUGHT
    + "{{- '<|assistant|>\n<think>' + thought + '</think>' }}"
    "{%- if said.strip() %}{{- '\n' + said.strip() }}{%- endif %}{%- else %}"
    "{{- '<|' + m.role + '|>\n' + m.content }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)
GPT_OSS = (
    "{{- '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + '<|end|>' }}{%- for m in messages %}"
    "{%- if m.role == 'assistant' %}{{- '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{%- else %}{{- '<|start|>' + ('developer' if m.role == 'system' else m.role) + '<|message|>' + m.content + '<|end|>' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)
ROLES = "<|start_of_role|>{}<|end_of_role|>"
NEMOTRON = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}" + SPLIT_THOUGHT + "{{- '<|im_start|>assistant\n<think>' }}"
    "{{- ('\n' + thought + '\n') if thought else '' }}{{- '</think>' + said + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"
)
S = ("<s>", "</s>")
PHI = ("<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|user|>", "<|system|>", "<|end|>")
PHI_TURNS = {role: f"<|{role}|>\n{{C}}<|end|>\n" for role in ("system", "user", "assistant")} | {"prompt": "<|assistant|>\n"}
KIMI = ("[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>")
MINIMAX = ("<beginning_of_sentence>", "<end_of_sentence>", "<turn>", "[e~[")

FAMILIES: dict[str, Family] = {
    "ChatML on a base model": Family(turns(**CHATML), IM, "<|im_end|>", eos="<|endoftext|>"),
    "Qwen2.5": Family(turns(**CHATML, opening=DEFAULT_SYSTEM), IM, "<|im_end|>", eos="<|im_end|>", others=THINK),
    "Qwen3": Family(QWEN3, IM, "<|im_end|>", eos="<|im_end|>", others=THINK),
    "SmolLM2": Family(turns(**CHATML, opening=DEFAULT_SYSTEM), IM, "<|im_end|>", bos="<|im_start|>", eos="<|im_end|>", writes_bos=True),
    "SmolLM3": Family(
        turns(**CHATML, opening="{{- '<|im_start|>system\nToday: ' + strftime_now(\"%d %B %Y\") + '<|im_end|>\n' }}"),
        IM,
        "<|im_end|>",
        eos="<|im_end|>",
        others=THINK,
        shows_day='strftime_now("%d %B %Y")',
    ),
    "Llama 2": Family(INST.replace("'[INST] '", "(bos_token if not loop.first else '') + '[INST] '"), S, "</s>", *S, writes_bos=True),
    "Llama 3": Family(turns(**LLAMA3_TURNS, opening=BOS), LLAMA3, "<|eot_id|>", "<|begin_of_text|>", "<|end_of_text|>", writes_bos=True),
    "Llama 3.2": Family(
        turns(**LLAMA3_TURNS, opening=BOS + "{{- '" + "Today: ' + strftime_now('%d %b %Y') + '\n' }}"),
        LLAMA3,
        "<|eot_id|>",
        "<|begin_of_text|>",
        "<|eot_id|>",
        writes_bos=True,
        shows_day="strftime_now('%d %b %Y')",
    ),
    "Mistral v0.2": Family(INST, S, "</s>", *S, writes_bos=True),
    "Mistral v0.3": Family(INST, (*S, "[INST]", "[/INST]"), "</s>", *S, writes_bos=True),
    "Gemma 2": Family(turns(**GEMMA_TURNS, opening=BOS), GEMMA, "<end_of_turn>", "<bos>", "<eos>", writes_bos=True, takes_system=False),
    "Gemma 3": Family(GEMMA3, GEMMA, "<end_of_turn>", "<bos>", "<eos>", writes_bos=True),
    "Gemma 4": Family(
        turns(
            system="<|turn>system\n{C}|trim<turn|>\n",
            user="<|turn>user\n{C}|trim<turn|>\n",
            assistant="<|turn>model\n{C}|trim<turn|>\n",
            prompt="<|turn>model\n<|channel>thought\n<channel|>",
            opening=BOS,
        ),
        ("<eos>", "<bos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>"),
        "<turn|>",
        "<bos>",
        "<eos>",
        writes_bos=True,
        dropped="<|channel>thought\n<channel|>",
    ),
    "Phi-3": Family(turns(**PHI_TURNS), PHI, "<|end|>", "<s>", "<|endoftext|>", strips=PHI[3:]),
    "Phi-3.5": Family(
        turns(**PHI_TURNS, closing="{%- if not add_generation_prompt %}{{- eos_token }}{%- endif %}"),
        PHI,
        "<|end|>",
        "<s>",
        "<|endoftext|>",
    ),
    "Phi-4": Family(
        turns(
            **{role: f"<|im_start|>{role}<|im_sep|>{{C}}<|im_end|>" for role in ("system", "user", "assistant")},
            prompt="<|im_start|>assistant<|im_sep|>",
        ),
        (*IM, "<|im_sep|>"),
        "<|im_end|>",
        "<|endoftext|>",
        "<|im_end|>",
    ),
    "Command R": Family(
        turns(**COHERE_TURNS, assistant=cohere("CHATBOT"), prompt="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", opening=BOS),
        COHERE,
        "<|END_OF_TURN_TOKEN|>",
        "<BOS_TOKEN>",
        "<|END_OF_TURN_TOKEN|>",
        writes_bos=True,
    ),
    "Command A": Family(
        turns(
            **COHERE_TURNS,
            assistant=cohere("CHATBOT", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
            prompt="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
            opening=BOS,
        ),
        (*COHERE, "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        "<|END_OF_TURN_TOKEN|>",
        "<BOS_TOKEN>",
        "<|END_OF_TURN_TOKEN|>",
        writes_bos=True,
    ),
    "DeepSeek-V3": Family(
        DEEPSEEK_TURNS + "{%- if add_generation_prompt %}{{- '<｜Assistant｜>' }}{%- endif %}",
        DEEPSEEK,
        DEEPSEEK[1],
        *DEEPSEEK,
        others=DEEPSEEK_OTHERS,
        writes_bos=True,
    ),
    "DeepSeek-R1": Family(
        DEEPSEEK_TURNS + "{%- if add_generation_prompt %}{{- '<｜Assistant｜><think>\n' }}{%- endif %}",
        DEEPSEEK,
        DEEPSEEK[1],
        *DEEPSEEK,
        others=DEEPSEEK_OTHERS,
        writes_bos=True,
        opens_thinking=True,
        dropped="<think>\n",
    ),
    "GLM-4.6": Family(
        GLM,
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        "<|user|>",
        eos="<|endoftext|>",
        others=THINK,
    ),
    "gpt-oss": Family(
        GPT_OSS,
        ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>", "<|call|>"),
        "<|return|>",
        "<|startoftext|>",
        "<|return|>",
        shows_day="strftime_now('%Y-%m-%d')",
    ),
    "Granite 3": Family(
        turns(
            **{role: ROLES.format(role) + "{C}<|end_of_text|>\n" for role in ("system", "user", "assistant")},
            prompt=ROLES.format("assistant"),
        ),
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
        "<|end_of_text|>",
        "<|end_of_text|>",
        "<|end_of_text|>",
    ),
    "Kimi-K2": Family(
        turns(
            **{role: f"<|im_{role}|>{role}<|im_middle|>{{C}}<|im_end|>" for role in ("system", "user", "assistant")},
            prompt="<|im_assistant|>assistant<|im_middle|>",
        ),
        KIMI,
        "<|im_end|>",
        "[BOS]",
        "[EOS]",
    ),
    "MiniMax-M2": Family(
        turns(**{role: f"<turn>{role}\n{{C}}[e~[\n" for role in ("system", "user", "assistant")}, prompt="<turn>assistant\n", opening=BOS),
        MINIMAX,
        "[e~[",
        "<beginning_of_sentence>",
        "[e~[",
        writes_bos=True,
    ),
    "Nemotron Nano": Family(NEMOTRON, (*IM, *S), "<|im_end|>", "<s>", "<|im_end|>", others=THINK, opens_thinking=True, dropped="<think>\n"),
    "OLMo 2": Family(
        turns(
            system="<|system|>\n{C}\n",
            user="<|user|>\n{C}\n",
            assistant="<|assistant|>\n{C}<|endoftext|>\n",
            prompt="<|assistant|>\n",
            opening=BOS,
        ),
        ("<|endoftext|>",),
        "<|endoftext|>",
        "<|endoftext|>",
        "<|endoftext|>",
        writes_bos=True,
    ),
    "Zephyr": Family(
        turns(**{role: f"<|{role}|>\n{{C}}</s>\n" for role in ("system", "user", "assistant")}, prompt="<|assistant|>\n"), S, "</s>", *S
    ),
    "OpenChat": Family(
        turns(
            system="{C}<|end_of_turn|>",
            user="GPT4 Correct User: {C}<|end_of_turn|>",
            assistant="GPT4 Correct Assistant: {C}<|end_of_turn|>",
            prompt="GPT4 Correct Assistant:",
            opening=BOS,
        ),
        (*S, "<|end_of_turn|>"),
        "<|end_of_turn|>",
        "<s>",
        "<|end_of_turn|>",
        writes_bos=True,
    ),
    "Vicuna": Family(
        turns(system="{C}\n\n", user="USER: {C}\n", assistant="ASSISTANT: {C}</s>\n", prompt="ASSISTANT:", opening=BOS),
        S,
        "</s>",
        *S,
        writes_bos=True,
    ),
    "Falcon": Family(
        turns(system="{C}\n\n", user="User: {C}\n\n", assistant="Assistant: {C}\n\n", prompt="Assistant:"),
        ("<|endoftext|>",),
        "<|endoftext|>",
        eos="<|endoftext|>",
    ),
}
