"""The fields that chat and text completions share."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, UnsetType

from llmdeploy.gateway.fields.bounds import (
    Answers,
    Count,
    Factor,
    Fields,
    Identifier,
    Limit,
    Name,
    Penalty,
    Probability,
    Seed,
    Share,
    Stop,
    Temperature,
    TokenId,
    Weight,
)


class StreamOptions(Fields):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchema(Fields):
    schema: Raw
    name: Name | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Fields):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema: Raw | UnsetType = UNSET


class Sampled(Fields):
    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: Answers | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=4)] | None = None
    seed: Seed | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenId, Weight], Meta(max_length=1024)] | None = None
    user: Identifier | Seed | None = None
    response_format: ResponseFormat | None = None

    # vLLM and llama.cpp
    top_k: Limit | None = None
    min_p: Probability | None = None
    ignore_eos: bool | None = None
    repetition_penalty: Factor | None = None
