"""Examples, the input of the encoder, and the classifier's forward pass."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from dora_core.classifier.model import LAYERS_AS_BERT, PairEncoder, SourceClassifier, build_classifier, collate
from dora_core.config.method import ClassifierConfig, ModelConfig
from dora_core.errors import ConfigError, ModelError
from tests.dora_core.classifier.examples import CONFIG, WIDE, make_examples


def test_targets_and_mask():
    examples = make_examples(1)
    targets, mask = examples.targets(2)
    assert mask.tolist() == [[True, True], [True, False], [False, True]]
    assert targets[mask].tolist() == [1.0, 1.0, 0.0, 0.0]


# ----------------------------------------------------------------------------------------------------------------- input


def test_prompts_keep_their_end_and_responses_their_beginning(fitted):
    tokenizer = fitted.tokenizer
    prompt, response = tokenizer("mild bread soup and wisdom", add_special_tokens=False)["input_ids"], tokenizer("the of with")["input_ids"]
    row = PairEncoder(tokenizer, 2, 1)(["mild bread soup and wisdom"], ["the of with"])
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert row.tokens.values.tolist() == [cls, *prompt[-2:], sep, response[0], sep] and row.start_N.tolist() == [4]
    assert row.responses.values.tolist() == [response[0], sep]
    bare = PairEncoder(tokenizer, 0, 8)(["mild bread soup"], ["the"])
    assert bare.tokens.values[:2].tolist() == [cls, sep]


def test_padding_and_batch_mates_do_not_change_a_score(fitted):
    examples, tokenizer = fitted.examples, fitted.tokenizer
    torch.manual_seed(0)
    model = build_classifier(CONFIG, tokenizer, WIDE).eval()
    torch.nn.init.normal_(model.head.weight)
    rows = PairEncoder(tokenizer, 8, 24)(["q", "a longer question"], ["soup", " ".join(examples.responses[:3])])
    device = torch.device("cpu")
    with torch.inference_mode():
        together = model(collate(rows, tokenizer.pad_token_id, device))
        alone = torch.cat([model(collate(rows[np.array([i])], tokenizer.pad_token_id, device)) for i in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [*sorted(LAYERS_AS_BERT), "distilbert"])
def test_leaving_the_prompt_out_of_the_last_layer_changes_no_score(fitted, kind):
    """Equals the mean of the plain encoder's states over the response, for each family and one without the shortcut."""
    sizes = {"vocab_size": 500, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    encoder = AutoModel.from_config(AutoConfig.for_model(kind, **sizes, max_position_embeddings=64, pad_token_id=0)).eval()
    model = SourceClassifier(encoder, WIDE).eval()
    torch.nn.init.normal_(model.head.weight)
    rows = PairEncoder(fitted.tokenizer, 8, 24)(["q", "a longer question", "q"], ["soup", "mild bread soup and wisdom", "grand cosmic"])
    batch = collate(rows, 0, torch.device("cpu"))
    with torch.inference_mode():
        hidden_NLH = encoder(input_ids=batch.ids, attention_mask=batch.attention.long()).last_hidden_state
        expected = torch.stack([model.head(hidden_LH[own].mean(dim=0)) for hidden_LH, own in zip(hidden_NLH, batch.response, strict=True)])
        torch.testing.assert_close(model(batch), expected, atol=1e-6, rtol=1e-6)


def test_input_longer_than_the_encoder_is_refused(fitted, tmp_path):
    folder = shutil.copytree(fitted.folder / "fold-0", tmp_path / "encoder")
    local = ClassifierConfig(encoder=ModelConfig(source=str(folder)), max_prompt_tokens=8, max_response_tokens=25)
    fitted.tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"= 36, but .* has 35 positions") as error:
        build_classifier(local, fitted.tokenizer, WIDE)
    assert "at most 32" in error.value.hint


def test_a_tokenizer_without_separator_is_refused(fitted):
    from transformers import PreTrainedTokenizerFast

    with pytest.raises(ModelError, match="separator"):
        PairEncoder(PreTrainedTokenizerFast(tokenizer_object=fitted.tokenizer.backend_tokenizer), 8, 8)
