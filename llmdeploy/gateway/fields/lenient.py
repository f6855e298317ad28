"""A second form of each class of fields, which leaves out the fields that it does not know. The first refuses them."""

from __future__ import annotations

import operator
import types
from functools import cache, reduce
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT

from llmdeploy.gateway.fields.bounds import Fields


@cache
def lenient(kind: type[Fields], *more: type[Fields]) -> type[Any]:
    """Return the form of a class, with the fields of others, that ignores unknown fields, in the objects in it too."""
    members: list[Any] = []
    for field in (field for it in (kind, *more) for field in msgspec.structs.fields(it)):
        default = () if field.default is NODEFAULT else (field.default,)
        members.append((field.name, _changed(field.type), *default))
    return msgspec.defstruct(kind.__name__, members, kw_only=True, gc=False, omit_defaults=True)


def _changed(hint: Any) -> Any:
    """Return a type hint with the lenient form of each class in it."""
    if isinstance(hint, type) and issubclass(hint, Fields):
        return lenient(hint)
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return Annotated[_changed(inside[0]), *inside[1:]]
    if origin in (Union, types.UnionType):
        return reduce(operator.or_, map(_changed, inside))
    return origin[tuple(map(_changed, inside))] if origin in (list, dict) else hint
