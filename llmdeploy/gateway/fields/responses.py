"""The fields of OpenAI's responses, and those that engines add to them."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Raw, UnsetType

from llmdeploy.gateway.fields.bounds import (
    MOST_MESSAGES,
    MOST_PARTS,
    MOST_TOOLS,
    Alternatives,
    Fields,
    Identifier,
    Limit,
    Name,
    Number,
    Penalty,
    Probability,
    Seed,
    Share,
    Stop,
    Temperature,
    TokenId,
    Weight,
)
from llmdeploy.gateway.fields.content import ImageUrl, Media
from llmdeploy.gateway.fields.engines import StructuredOutputs
from llmdeploy.gateway.fields.openai import Reasoning


class ItemPart(Fields):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | ImageUrl | None = None
    detail: Name | None = None
    file_id: Identifier | None = None
    file_url: str | None = None
    file_data: str | None = None
    filename: Name | None = None
    audio_url: str | Media | None = None
    video_url: str | Media | None = None
    input_audio: Media | None = None
    annotations: Raw | UnsetType = UNSET
    logprobs: Raw | UnsetType = UNSET


ItemParts = Annotated[list[ItemPart], Meta(max_length=MOST_PARTS)]


class Item(Fields):
    """A message, a call of a tool, its result, or thoughts."""

    type: Name | UnsetType = UNSET
    role: Name | None = None
    content: str | ItemParts | None = None
    id: Identifier | None = None
    status: Name | None = None
    phase: Name | None = None

    # The calls of tools, and their results
    name: Name | None = None
    call_id: Identifier | None = None
    arguments: str | None = None
    input: str | None = None
    output: str | ItemParts | None = None

    # Thoughts
    summary: ItemParts | UnsetType = UNSET
    encrypted_content: str | None = None


class ResponsesTool(Fields):
    type: Name
    name: Name | None = None
    description: str | None = None
    parameters: Raw | UnsetType = UNSET
    strict: bool | None = None


class ResponsesToolChoice(Fields):
    type: Name
    name: Name | None = None
    mode: Name | None = None


class TextFormat(Fields):
    type: Name
    name: Name | None = None
    description: str | None = None
    schema: Raw | UnsetType = UNSET
    strict: bool | None = None


class Text(Fields):
    format: TextFormat | None = None
    verbosity: Name | None = None


class Responses(Fields):
    model: str
    input: str | Annotated[list[Item], Meta(max_length=MOST_MESSAGES)] | UnsetType = UNSET
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Number | None = None
    max_tool_calls: Number | None = None
    parallel_tool_calls: bool | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_logprobs: Alternatives | None = None
    text: Text | None = None
    tools: Annotated[list[ResponsesTool], Meta(max_length=MOST_TOOLS)] | None = None
    tool_choice: Name | ResponsesToolChoice | None = None
    reasoning: Reasoning | None = None
    truncation: Name | None = None
    previous_response_id: Identifier | None = None
    store: bool | None = None
    background: bool | None = None
    include: Annotated[list[Name], Meta(max_length=32)] | None = None
    metadata: Annotated[dict[Name, Identifier], Meta(max_length=32)] | None = None
    user: Identifier | None = None
    service_tier: Name | None = None

    # vLLM
    logit_bias: Annotated[dict[TokenId, Weight], Meta(max_length=1024)] | None = None
    top_k: Limit | None = None
    min_p: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Weight | None = None
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=4)] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    include_reasoning: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    chat_template_kwargs: Raw | UnsetType = UNSET
    cache_salt: Identifier | None = None
    prompt_cache_key: Identifier | None = None
