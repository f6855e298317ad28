"""Types of the values of keys. Each class names its type in messages, checks a value, and reads one from a text."""

from __future__ import annotations

import os
from dataclasses import field
from typing import Any, cast

Words = tuple[str, ...]
"""A dotted key, split."""

LARGEST = 2**63 - 1  # TOML promises no larger integer


class Whole:
    """A whole number within limits."""

    def __init__(self, low: int, high: int = LARGEST) -> None:
        self.low, self.high = low, high

    def __str__(self) -> str:
        return f"a whole number from {self.low} " + ("up" if self.high == LARGEST else f"to {self.high}")

    def accepts(self, value: object) -> bool:
        return type(value) is int and self.low <= value <= self.high  # True is an int too, but not of this type

    def read(self, text: str) -> int:
        return int(text)


class Positive:
    """A number above 0."""

    def __str__(self) -> str:
        return "a number above 0"

    def accepts(self, value: object) -> bool:
        return type(value) in (int, float) and 0 < cast("float", value) <= LARGEST

    def read(self, text: str) -> float:
        try:
            return int(text)
        except ValueError:
            return float(text)


class Fraction(Positive):
    """A number above 0, and 1 at most."""

    def __str__(self) -> str:
        return "a number above 0, 1 at most"

    def accepts(self, value: object) -> bool:
        return super().accepts(value) and cast("float", value) <= 1


class Length(Whole):
    """A number, or `auto`: the longest that fits."""

    def __str__(self) -> str:
        return f"{super().__str__()}, or `auto`"

    def accepts(self, value: object) -> bool:
        return value == "auto" or super().accepts(value)

    def read(self, text: str) -> Any:
        return text if text == "auto" else int(text)


class Arguments:
    """Arguments of a program that is run, passed on as they are."""

    names, example = "arguments of a program", "'--max-num-batched-tokens 8192'"

    def __str__(self) -> str:
        return "an array of texts"

    def accepts(self, value: object) -> bool:
        return isinstance(value, list) and all(isinstance(word, str) and word.isprintable() for word in value)

    def read(self, text: str) -> list[str]:
        import shlex

        return shlex.split(text)


class Origins:
    """Origins of web pages, browser extensions and desktop applications, as browsers write them."""

    names, example = "the web pages that may use the model", "https://app.example"

    def __str__(self) -> str:
        return "an array of origins such as `https://app.example`, `chrome-extension://ID` or `app://*`"

    def accepts(self, value: object) -> bool:
        return isinstance(value, list) and all(isinstance(it, str) and _is_origin(it) for it in value)

    def read(self, text: str) -> list[str]:
        import shlex

        return shlex.split(text.replace(",", " "))


def _is_origin(text: str) -> bool:
    """Return whether a text names an origin, the origins of a domain, or those of a scheme other than the web's."""
    import re

    web = r"https?://(\*\.)?(\[[0-9a-f:.]+\]|[a-z0-9_-]+(\.[a-z0-9_-]+)*)(:[0-9]{1,5})?"
    scheme = r"(?!https?:|file:|data:|blob:|javascript:)[a-z][a-z0-9+.-]*://(\*|[a-z0-9._-]*(:[0-9]{1,5})?)"
    return len(text) <= 200 and any(re.fullmatch(it, text, re.IGNORECASE) for it in (web, scheme))


class Text:
    """A text in one line, or one of several words."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def __str__(self) -> str:
        return " or ".join(f"`{choice}`" for choice in self.choices) or "a non-empty printable string"

    def accepts(self, value: object) -> bool:
        # No control characters: a value may become an argument of a server, and a line on a terminal.
        usable = isinstance(value, str) and value != "" and value.isprintable()
        return usable and (not self.choices or value in self.choices)

    def read(self, text: str) -> str:
        return text


class Switch:
    """`true` or `false`."""

    def __str__(self) -> str:
        return "`true` or `false`"

    def accepts(self, value: object) -> bool:
        return isinstance(value, bool)

    def read(self, text: str) -> bool:
        if text not in {"true", "false"}:
            raise ValueError(text)
        return text == "true"


class Absolute:
    """An absolute path: it means the same in every folder."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __str__(self) -> str:
        return f"the absolute path of a {self.what}"

    def accepts(self, value: object) -> bool:
        return isinstance(value, str) and value.isprintable() and os.path.isabs(value)

    def read(self, text: str) -> str:
        return text


class Program(Absolute):
    """The path of a program that is run."""

    names, example = "a program to run", "/path/to/program"

    def __init__(self) -> None:
        super().__init__("program")


class Store(Absolute):
    """A folder of models that are taken instead of downloads, and that is filled."""

    names, example = "the models that are used", "/path/to/models"

    def __init__(self) -> None:
        super().__init__("folder")


class Secret(Absolute):
    """A file with the API key. Whoever chooses the file knows the key."""

    names, example = "the API key", "/path/to/key"

    def __init__(self) -> None:
        super().__init__("file")


class Address(Text):
    """An address that prompts are sent to."""

    names, example = "where prompts go", "127.0.0.1:11434"


class Host(Text):
    """An address of this machine to listen on."""

    names, example = "who can send prompts", "127.0.0.1"

    def __str__(self) -> str:
        return "an IP address or `localhost`"

    def accepts(self, value: object) -> bool:
        import ipaddress

        if not isinstance(value, str) or "%" in value:  # the name of an interface, which a URL cannot have
            return False
        try:
            ipaddress.ip_address(value)
        except ValueError:
            return value == "localhost"
        return True


Rule = Whole | Positive | Text | Switch | Arguments | Absolute | Origins

Personal = Program | Store | Secret | Address | Host | Arguments | Origins
"""Types of values that `./llmdeploy.toml` may not set, because that file may come from someone else."""


def setting(rule: Rule, default: object, help: str, name: str = "", *, is_limit: bool = False) -> Any:
    """Return the dataclass field of one key.

    `name` is the name of the key, if it differs from that of the field. With `is_limit`, `./llmdeploy.toml` may set no
    value above the default.
    """
    metadata = {"rule": rule, "help": help, "limit": is_limit, **({"name": name} if name else {})}
    return field(default=default, metadata=metadata)
