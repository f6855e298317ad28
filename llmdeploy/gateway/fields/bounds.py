"""The types of fields, with their bounds. A bound is far above what a real request needs."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

MOST_INT32 = 2**31 - 1


class Fields(Struct, kw_only=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """An object in a request. A field that is null is sent as if it were absent."""


# Numbers

Count = Annotated[int, Meta(ge=1)]
"""A number of tokens; one that is larger than the context is lowered to it."""
Limit = Annotated[int, Meta(ge=-1, le=MOST_INT32)]
"""A number of tokens or milliseconds; -1 means all, or no limit."""
Number = Annotated[int, Meta(ge=0, le=MOST_INT32)]
Window = Annotated[int, Meta(ge=-1, le=65_536)]
"""Tokens that a sampler looks back; the engine allocates memory for each."""
Answers = Annotated[int, Meta(ge=1, le=128)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=MOST_INT32)]
Alternatives = Annotated[int, Meta(ge=0, le=20)]
"""Tokens whose probability is reported beside the chosen one."""
Small = Annotated[int, Meta(ge=0, le=1024)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Share = Annotated[float, Meta(gt=0, le=1)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Factor = Annotated[float, Meta(ge=0, le=100)]
Weight = Annotated[float, Meta(ge=-100, le=100)]

# Texts

Word = Annotated[str, Meta(min_length=1)]
Name = Annotated[str, Meta(max_length=256)]
Identifier = Annotated[str, Meta(max_length=1024)]
Stop = Annotated[str, Meta(min_length=1, max_length=1024)]
Grammar = Annotated[str, Meta(max_length=65_536)]
Regex = Annotated[str, Meta(max_length=4096)]
Choice = Annotated[str, Meta(max_length=4096)]
Breaker = Annotated[str, Meta(max_length=64)]

# Lists

MOST_MESSAGES = 10_000
MOST_PARTS = 1000
MOST_TOOLS = 512
