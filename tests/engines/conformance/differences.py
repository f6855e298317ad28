"""The answers that differ between engines, and why. A test compares this table with the one in docs/api.md."""

from __future__ import annotations

from dataclasses import dataclass

ONE_FORM = "the variants of the self-test model are made from its GGUF file, which vLLM does not serve"


@dataclass(frozen=True)
class Difference:
    """An answer of one engine that differs from that of the others."""

    name: str
    """The name of the request."""
    engine: str
    cell: str
    reason: str
    text: str | None = None
    """The text of the first choice, if it is always the same."""

    @property
    def row(self) -> str:
        """The row in the table of docs/api.md."""
        return f"| {self.name} | {self.engine} | `{self.cell}` | {self.reason} |"


REFUSED = "400 unsupported_parameter"
TEMPLATE = "Ollama puts the prompt of a completion into the model's chat template"
GENERATES = "vLLM supports it; the others would ignore it or answer in another form, so it is refused there"

DIFFERENCES = (
    Difference(
        "unfinished assistant message",
        "vllm",
        "200 stop",
        "vLLM starts a new message, as OpenAI does; the others continue the unfinished one",
    ),
    Difference("n 2", "ollama", REFUSED, "Ollama generates one answer, whatever `n` is"),
    Difference("logit_bias", "ollama", REFUSED, "Ollama would ignore it"),
    Difference(
        "images in two turns",
        "ollama",
        "200 stop",
        "Ollama turns each part of a message into a separate message, and uses more tokens for an image: "
        "a small model may answer differently",
    ),
    Difference("image, WebP", "llamacpp", "400 invalid_image", "llama.cpp cannot decode WebP: send PNG or JPEG"),
    Difference("completion of bare text", "ollama", "200 length", TEMPLATE),
    Difference(
        "completion, streamed with usage",
        "llamacpp",
        "200 length",
        "llama.cpp sends the usage with the last event, not in a separate one",
        "Hello!",
    ),
    Difference(
        "completion, streamed with usage",
        "ollama",
        "200 length",
        "Ollama sends a usage of zeros in each event, and the right one in the last",
        "Hello!",
    ),
    Difference(
        "completion, overflow",
        "ollama",
        "200 length",
        "Ollama cuts off the beginning of a prompt that is too long for a completion",
    ),
    Difference("completion, echo", "vllm", "200 length", GENERATES, "la la la"),
    Difference("completion, logprobs", "vllm", "200 length", GENERATES, " la"),
)
