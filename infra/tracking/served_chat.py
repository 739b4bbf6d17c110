"""The policy as MLflow serves it: chat messages in, text out. Copied into the folder of every registered model (``mlflow_model.py``).

Imports nothing of this package: `mlflow models serve` runs it where only mlflow, torch and transformers are installed. Messages are put
into the model's chat template; a model without one gets them as it was trained, one user message as it is, more as ``Role: content`` lines.
"""

from __future__ import annotations

from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel, PythonModelContext

MOST_TOKENS = 256


class ChatPolicy(PythonModel):  # type: ignore[misc]  # mlflow has no types
    """A causal language model of a folder, loaded by transformers."""

    def load_context(self, context: PythonModelContext) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = context.artifacts["model"]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True).eval().to(device)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow would take a type for a schema
        """Answer each conversation.

        Args:
            model_input: a table with a column ``messages``, or one conversation as ``{"messages": […]}``.
            params: max_tokens, temperature (0: the likeliest answer), seed.
        """
        settings = {"max_tokens": MOST_TOKENS, "temperature": 0.0, "seed": 0} | (params or {})
        return [self._answer(messages, settings) for messages in conversations(model_input)]

    def _answer(self, messages: list[dict[str, str]], settings: dict[str, Any]) -> str:
        import torch

        if self.tokenizer.chat_template is not None:
            encoded = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        else:
            encoded = self.tokenizer(plain_text(messages), add_special_tokens=False, return_tensors="pt")
        ids = encoded["input_ids"].to(self.model.device)
        torch.manual_seed(int(settings["seed"]))
        heat = float(settings["temperature"])
        sampling: dict[str, Any] = {"do_sample": True, "temperature": heat} if heat > 0 else {"do_sample": False}
        mask, pad = torch.ones_like(ids), self.tokenizer.pad_token_id
        with torch.inference_mode():
            made = self.model.generate(ids, attention_mask=mask, max_new_tokens=int(settings["max_tokens"]), pad_token_id=pad, **sampling)
        return str(self.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def conversations(model_input: Any) -> list[list[dict[str, str]]]:
    """Return the conversations of a table, of one conversation, or of a list of them."""
    if hasattr(model_input, "to_dict"):  # a pandas table
        return [_messages(entry) for entry in model_input["messages"]]
    if isinstance(model_input, dict):
        return [_messages(model_input["messages"])]
    return [_messages(entry["messages"]) for entry in model_input]


def _messages(given: Any) -> list[dict[str, str]]:
    return [{"role": str(message["role"]), "content": str(message["content"])} for message in given]


def plain_text(messages: list[dict[str, str]]) -> str:
    """Return a conversation as the text that a model without a chat template was trained on."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"] + "\n"
    return "\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages) + "\n"


if __name__.startswith("code_model_"):  # as MLflow imports the copy in a model's folder
    mlflow.models.set_model(ChatPolicy())
