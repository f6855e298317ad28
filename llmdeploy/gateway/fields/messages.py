"""The fields of Anthropic's messages, and those that engines add to them."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Raw, UnsetType

from llmdeploy.gateway.fields.bounds import (
    MOST_MESSAGES,
    MOST_PARTS,
    MOST_TOOLS,
    Fields,
    Identifier,
    Name,
    Number,
    Probability,
    Stop,
    Temperature,
)
from llmdeploy.gateway.fields.content import ImageUrl


class Source(Fields):
    """The bytes of an image or a document."""

    type: str
    media_type: Name | None = None
    data: str | None = None
    url: str | None = None
    file_id: Identifier | None = None


class ResultPart(Fields):
    """A part of the result of a tool."""

    type: str
    text: str | None = None
    source: Source | None = None
    image_url: str | ImageUrl | None = None
    title: str | None = None
    context: str | None = None


class Block(Fields):
    type: str
    text: str | None = None
    source: Source | None = None
    image_url: str | ImageUrl | None = None
    title: str | None = None
    context: str | None = None

    # The calls of tools, and their results
    id: Identifier | None = None
    tool_use_id: Identifier | None = None
    name: Name | None = None
    input: Raw | UnsetType = UNSET
    content: str | Annotated[list[ResultPart], Meta(max_length=MOST_PARTS)] | None = None
    is_error: bool | None = None

    # Thoughts
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None


Blocks = Annotated[list[Block], Meta(max_length=MOST_PARTS)]


class Turn(Fields):
    role: str
    content: str | Blocks


class MessagesTool(Fields):
    name: Name
    type: Name | None = None
    description: str | None = None
    input_schema: Raw | UnsetType = UNSET
    strict: bool | None = None


class MessagesToolChoice(Fields):
    type: Name
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Fields):
    type: Name
    budget_tokens: Number | None = None
    display: Name | None = None


class OutputFormat(Fields):
    type: Name
    schema: Raw | UnsetType = UNSET


class OutputConfig(Fields):
    effort: Name | None = None
    format: OutputFormat | None = None


class Messages(Fields):
    model: str
    messages: Annotated[list[Turn], Meta(max_length=MOST_MESSAGES)] | UnsetType = UNSET
    max_tokens: Number | UnsetType = UNSET
    system: str | Blocks | None = None
    stream: bool | None = None
    stop_sequences: Annotated[list[Stop], Meta(max_length=64)] | None = None
    temperature: Temperature | None = None
    top_k: Number | None = None
    top_p: Probability | None = None
    tools: Annotated[list[MessagesTool], Meta(max_length=MOST_TOOLS)] | None = None
    tool_choice: MessagesToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None

    # vLLM and llama.cpp
    chat_template_kwargs: Raw | UnsetType = UNSET

    # vLLM
    cache_salt: Identifier | None = None
