"""Special tokens of a tokenizer inside texts: they would become control tokens of the policy.

Tokens of chat templates (``<|im_start|>``, ``[INST]``, …) are already refused row by row by the adapter; here are the bare ones, whose
share decides, because a text about tokenizers or a line of HTML may hold one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from dora_core.data.adapter.transcripts import has_token
from dora_core.data.suspicion.base import CountingRule, Finding, Seen

NOTED_SHARE = 0.01
"""Share of records up to which a finding is a note."""
_BARE = re.compile(r"<(?:bos|eos|pad|unk|sep|mask)>|\[(?:CLS|SEP|PAD|BOS|EOS)\]|\A\s*<s>(?!.*</s>.*\S)|</s>\s*\Z", re.DOTALL)


class SpecialTokens(CountingRule):
    """A prompt or response with a special token."""

    name = "special_tokens"
    level = "refuse"
    phrase = "hold special tokens of a tokenizer or template inside a text"
    hint = "export the texts without special tokens; the pipeline adds those of the policy"

    def holds(self, seen: Seen) -> bool:
        texts = (*(message["content"] for message in seen.record.prompt), *seen.record.responses)
        return any(("<" in text or "[" in text) and (_BARE.search(text) is not None or has_token(text)) for text in texts)

    def findings(self) -> Iterator[Finding]:
        for finding in super().findings():
            level = "refuse" if finding.count > NOTED_SHARE * self.all else "note"
            yield self.found(finding.count, finding.message, finding.examples, level=level)  # type: ignore[arg-type]


RULE = SpecialTokens
