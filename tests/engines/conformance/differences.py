"""What is not the same on every engine, and why. docs/api.md has the same table, which a test holds."""

from __future__ import annotations

from dataclasses import dataclass

ONE_FORM = "the other forms of the self-test model are made of its GGUF file, which vLLM does not serve"


@dataclass(frozen=True)
class Difference:
    name: str
    """Of the request."""
    engine: str
    cell: str
    reason: str
    text: str | None = None
    """Of the first choice, where it is always the same."""

    @property
    def row(self) -> str:
        """In the table of docs/api.md."""
        return f"| {self.name} | {self.engine} | `{self.cell}` | {self.reason} |"


REFUSED = "400 unsupported_parameter"
TEMPLATE = "Ollama puts the prompt of a completion into the model's chat template"
GENERATES = "vLLM knows it; the others would ignore it or answer in another form, so it is refused there"

DIFFERENCES = (
    Difference(
        "the assistant's turn begun",
        "vllm",
        "200 stop",
        "vLLM begins another message, as OpenAI does; the others go on with the one that was begun",
    ),
    Difference("n 2", "ollama", REFUSED, "Ollama makes one answer, whatever `n` says"),
    Difference("logit_bias", "ollama", REFUSED, "Ollama would ignore it"),
    Difference(
        "images in two turns",
        "ollama",
        "200 stop",
        "Ollama makes a message of its own of each part of a message, and takes more tokens for an image: "
        "a small model may answer otherwise",
    ),
    Difference("image, WebP", "llamacpp", "400 invalid_image", "llama.cpp's decoder knows no WebP: send PNG or JPEG"),
    Difference("completion of bare text", "ollama", "200 length", TEMPLATE),
    Difference(
        "completion, streamed with usage",
        "llamacpp",
        "200 length",
        "llama.cpp tells the usage in the event of the end, not in one of its own",
        "Hello!",
    ),
    Difference(
        "completion, streamed with usage",
        "ollama",
        "200 length",
        "Ollama tells a usage of zeros in each event, and the right one in the last",
        "Hello!",
    ),
    Difference(
        "completion, overflow",
        "ollama",
        "200 length",
        "Ollama cuts the beginning of a completion's prompt where it is too long",
    ),
    Difference("completion, echo", "vllm", "200 length", GENERATES, "la la la"),
    Difference("completion, logprobs", "vllm", "200 length", GENERATES, " la"),
)
