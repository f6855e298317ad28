"""The fields of OpenAI's chat, completions and embeddings, and those that engines add to them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, UnsetType

from llmdeploy.gateway.fields.bounds import (
    MOST_MESSAGES,
    MOST_TOOLS,
    Alternatives,
    Fields,
    Identifier,
    Limit,
    Name,
    Number,
    TokenId,
    Word,
)
from llmdeploy.gateway.fields.content import Message
from llmdeploy.gateway.fields.sampled import Sampled


class Function(Fields):
    name: Name
    description: str | None = None
    parameters: Raw | UnsetType = UNSET
    strict: bool | None = None


class Tool(Fields):
    function: Function
    type: Literal["function"] | UnsetType = UNSET


class FunctionName(Fields):
    name: Name


class ToolChoice(Fields):
    function: FunctionName
    type: Literal["function"] | UnsetType = UNSET


class Reasoning(Fields):
    effort: Name | None = None
    summary: Name | None = None


class Chat(Sampled, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MOST_MESSAGES)]
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    tools: Annotated[list[Tool], Meta(min_length=1, max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    reasoning: Reasoning | None = None


class Completion(Sampled, kw_only=True):
    prompt: Word
    logprobs: Alternatives | None = None
    best_of: Annotated[int, Meta(ge=1, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None


class Embedding(Fields):
    model: str
    input: str | Annotated[list[str | TokenId | list[TokenId]], Meta(max_length=65_536)] | None = None
    messages: Annotated[list[Message], Meta(max_length=MOST_MESSAGES)] | None = None
    encoding_format: Name | None = None
    dimensions: Number | None = None
    user: Identifier | None = None

    # vLLM
    truncate_prompt_tokens: Limit | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Raw | UnsetType = UNSET
    use_activation: bool | None = None
    cache_salt: Identifier | None = None

    # llama.cpp
    embd_normalize: Annotated[int, Meta(ge=-1, le=1024)] | None = None
