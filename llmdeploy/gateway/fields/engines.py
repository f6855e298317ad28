"""The fields that vLLM and llama.cpp add to chats and completions. Bodies that have some of them are parsed twice."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, UnsetType

from llmdeploy.gateway.fields.bounds import (
    Alternatives,
    Breaker,
    Choice,
    Factor,
    Fields,
    Grammar,
    Identifier,
    Limit,
    Name,
    Number,
    Probability,
    Regex,
    Small,
    Stop,
    TokenId,
    Weight,
    Window,
)


class StructuredOutputs(Fields):
    """A constraint of the output, under vLLM's names. One of the first five."""

    json: Raw | UnsetType = UNSET
    regex: Regex | None = None
    choice: Annotated[list[Choice], Meta(max_length=500)] | None = None
    grammar: Grammar | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: Regex | None = None


class RepetitionDetection(Fields):
    max_pattern_size: Small | None = None
    min_pattern_size: Small | None = None
    min_count: Small | None = None


class EngineFields(Fields):
    # vLLM
    length_penalty: Weight | None = None
    use_beam_search: bool | None = None
    min_tokens: Number | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=128)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(max_length=4096)] | None = None
    bad_words: Annotated[list[Stop], Meta(max_length=128)] | None = None
    logprob_token_ids: Annotated[list[TokenId], Meta(max_length=128)] | None = None
    prompt_logprobs: Alternatives | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Limit | None = None
    truncation_side: Literal["left", "right"] | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    cache_salt: Identifier | None = None
    session_id: Identifier | None = None
    stream_interval: Small | None = None
    thinking_token_budget: Limit | None = None
    repetition_detection: RepetitionDetection | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Raw | UnsetType = UNSET
    guided_regex: Regex | None = None
    guided_choice: Annotated[list[Choice], Meta(max_length=500)] | None = None
    guided_grammar: Grammar | None = None
    guided_whitespace_pattern: Regex | None = None

    # llama.cpp
    n_predict: Limit | None = None
    n_keep: Limit | None = None
    n_discard: Number | None = None
    n_indent: Small | None = None
    n_probs: Alternatives | None = None
    min_keep: Small | None = None
    t_max_predict_ms: Limit | None = None
    typical_p: Probability | None = None
    top_n_sigma: Weight | None = None
    xtc_probability: Probability | None = None
    xtc_threshold: Probability | None = None
    dynatemp_range: Factor | None = None
    dynatemp_exponent: Factor | None = None
    repeat_penalty: Factor | None = None
    repeat_last_n: Window | None = None
    dry_multiplier: Factor | None = None
    dry_base: Factor | None = None
    dry_allowed_length: Small | None = None
    dry_penalty_last_n: Window | None = None
    dry_sequence_breakers: Annotated[list[Breaker], Meta(max_length=32)] | None = None
    mirostat: Annotated[int, Meta(ge=0, le=2)] | None = None
    mirostat_tau: Factor | None = None
    mirostat_eta: Factor | None = None
    samplers: Breaker | Annotated[list[Breaker], Meta(max_length=32)] | None = None
    cache_prompt: bool | None = None
    post_sampling_probs: bool | None = None
    return_tokens: bool | None = None
    return_progress: bool | None = None
    timings_per_token: bool | None = None
    grammar: Grammar | None = None
    json_schema: Raw | UnsetType = UNSET


class EngineChatFields(EngineFields):
    # vLLM and llama.cpp
    chat_template_kwargs: Raw | UnsetType = UNSET
    add_generation_prompt: bool | None = None
    continue_final_message: bool | Name | None = None
    echo: bool | None = None

    # vLLM
    documents: Raw | UnsetType = UNSET
    include_reasoning: bool | None = None

    # llama.cpp
    reasoning_format: Name | None = None
    reasoning_budget_tokens: Limit | None = None
    parse_tool_calls: bool | None = None
