"""OLLAMA_HOST, case by case as Ollama's own tests have it (`envconfig/config_test.go`), and beyond."""

from __future__ import annotations

import pytest

from llmdeploy.engines.ollama.host import Host, is_local_url, parse


@pytest.mark.parametrize(
    ("text", "url", "listen"),
    [
        (None, "http://127.0.0.1:11434", "127.0.0.1:11434"),
        ("", "http://127.0.0.1:11434", "127.0.0.1:11434"),
        ("  ", "http://127.0.0.1:11434", "127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434", "1.2.3.4:11434"),
        ("1.2.3.4:1234", "http://1.2.3.4:1234", "1.2.3.4:1234"),
        (":1234", "http://127.0.0.1:1234", ":1234"),
        ("0.0.0.0", "http://127.0.0.1:11434", "0.0.0.0:11434"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080", "0.0.0.0:8080"),
        ("http://0.0.0.0:8080", "http://127.0.0.1:8080", "0.0.0.0:8080"),
        ("[::]:11434", "http://[::1]:11434", "[::]:11434"),
        ("[::]", "http://[::1]:11434", "[::]:11434"),
        ("::", "http://[::1]:11434", "[::]:11434"),
        ("::1", "http://[::1]:11434", "[::1]:11434"),
        ("[::1]", "http://[::1]:11434", "[::1]:11434"),
        ("[::1]:1337", "http://[::1]:1337", "[::1]:1337"),
        ("example.com", "http://example.com:11434", "example.com:11434"),
        ("example.com:1234", "http://example.com:1234", "example.com:1234"),
        ("http://1.2.3.4", "http://1.2.3.4:80", "1.2.3.4:80"),
        ("http://1.2.3.4:4321", "http://1.2.3.4:4321", "1.2.3.4:4321"),
        ("https://1.2.3.4", "https://1.2.3.4:443", "1.2.3.4:443"),
        ("https://1.2.3.4:4321", "https://1.2.3.4:4321", "1.2.3.4:4321"),
        ("http://", "http://127.0.0.1:80", "127.0.0.1:80"),
        ("https://example.com/ollama", "https://example.com:443/ollama", "example.com:443"),
        ("example.com:1234/ollama/", "http://example.com:1234/ollama", "example.com:1234"),
        ("http://1.2.3.4/", "http://1.2.3.4:80", "1.2.3.4:80"),
        ("ollama.com", "https://ollama.com:443", "ollama.com:443"),
        (" 1.2.3.4 ", "http://1.2.3.4:11434", "1.2.3.4:11434"),
        ('"1.2.3.4"', "http://1.2.3.4:11434", "1.2.3.4:11434"),
        ("'1.2.3.4'", "http://1.2.3.4:11434", "1.2.3.4:11434"),
        (' " 1.2.3.4 " ', "http://1.2.3.4:11434", "1.2.3.4:11434"),
    ],
)
def test_valid_value(text: str | None, url: str, listen: str) -> None:
    assert parse(text) == Host(url, listen)


@pytest.mark.parametrize(
    ("text", "host", "listen", "problem"),
    [
        ("127.0.0.1:abc", "127.0.0.1:11434", "127.0.0.1:11434", "the port `abc`, which is none: DEFAULT 11434"),
        (":66000", "127.0.0.1:11434", ":11434", "the port `66000`, which is none: DEFAULT 11434"),
        (":99999999999", "127.0.0.1:11434", ":11434", "the port `99999999999`, which is none: DEFAULT 11434"),
        (":-1", "127.0.0.1:11434", ":11434", "the port `-1`, which is none: DEFAULT 11434"),
        ("http://h:x", "h:80", "h:80", "the port `x`, which is none: DEFAULT 80"),
        ("h:", "h:11434", "h:11434", "no port behind its `:`: DEFAULT 11434"),
        (":0", "127.0.0.1:0", ":0", "the port 0: Ollama takes any free one, and no client can know which"),
        ("tcp://h:1", "h:1", "h:1", "the scheme `tcp`: Ollama's server ignores it, and its client refuses it"),
        ("1.2.3.4:80:90", "[1.2.3.4:80:90]:11434", "[1.2.3.4:80:90]:11434", "the host `1.2.3.4:80:90`, NOWHERE"),
        ("a b", "a b:11434", "a b:11434", "the host `a b`, NOWHERE"),
    ],
)
def test_malformed_value_reports_its_effect_in_ollama(text: str, host: str, listen: str, problem: str) -> None:
    problem = problem.replace("DEFAULT", "Ollama warns and uses")
    problem = problem.replace("NOWHERE", "which is none: Ollama can neither listen there nor find it")
    assert parse(text) == Host(f"http://{host}", listen, f"`OLLAMA_HOST` has {problem}")


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:11434", True),
        ("http://127.8.9.1:11434", True),
        ("http://[::1]:11434/path", True),
        ("http://localhost:11434", True),
        ("http://ollama.localhost", True),
        ("http://localhost.example.com", False),
        ("http://192.168.0.7:11434", False),
        ("https://ollama.com:443", False),
        ("http://[nonsense", False),
    ],
)
def test_local_urls(url: str, loopback: bool) -> None:
    assert is_local_url(url) is loopback
