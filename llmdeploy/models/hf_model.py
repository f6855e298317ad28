"""A model in Hugging Face form: config.json, safetensors and a tokenizer, in a folder here or in a Hub repository."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from llmdeploy.errors import ModelInvalid, ModelNotFound
from llmdeploy.models import catalog, hub
from llmdeploy.models.facts import UNKNOWN_LENGTH, ModelFacts
from llmdeploy.models.hub import OnProgress
from llmdeploy.models.reference import CatalogName, HubFile, HubRepo, ModelRef, OllamaTag
from llmdeploy.paths import selftest_dir

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py", "*.tiktoken")
"""What vLLM reads of a repository; others, such as `*.bin` and `*.gguf`, hold the same weights once more."""
TOKENIZERS = ("token*", "vocab*", "tekken*", "*.model", "*.tiktoken")
"""One of them is there, whatever kind the model has."""


@dataclass(frozen=True)
class HfModel:
    location: Path | HubRepo

    def __str__(self) -> str:
        return str(self.location)

    def present(self) -> bool:
        """Whether all of it is on this machine. Touches no network."""
        return isinstance(self.location, Path) or (self._cached(CONFIG) is not None and self._has_weights())

    def pull(self, on_progress: OnProgress) -> None:
        """Fetch what is missing. Raises DownloadFailed."""
        if isinstance(self.location, HubRepo):
            for name in _wanted(hub.files_of(self.location)):
                file = HubFile(self.location.repo, name, self.location.revision)
                if not hub.cached(file):
                    hub.download(file, on_progress)

    @property
    def folder(self) -> Path:
        """Where its files lie. Raises ModelNotFound."""
        if isinstance(self.location, Path):
            return self.location
        if config := self._cached(CONFIG):
            return config.parent
        raise ModelNotFound(f"`{self}` is not on this machine", "`llmdeploy serve` fetches it")

    def facts(self) -> ModelFacts:
        """Raises ModelNotFound, ModelInvalid."""
        return read_hf(self.folder)

    def require_tokenizer(self) -> None:
        """Raises ModelInvalid where there is none: vLLM would serve all the same, and answer with garbage."""
        if not any(any(self.folder.glob(pattern)) for pattern in TOKENIZERS):
            raise ModelInvalid(
                f"`{self.folder}` holds no tokenizer", "put the model's own there: `tokenizer.json` in most cases"
            )

    def local_files(self) -> tuple[Path, ...]:
        """What makes it what it is: the configuration and the weights."""
        return (self.folder / CONFIG, *sorted(_weights(self.folder)))

    def remote_code(self) -> tuple[Path, ...]:
        """The Python files that the model's configuration would have run; none for a model of known architecture."""
        config = _json(self.folder / CONFIG)
        return tuple(sorted(self.folder.glob("*.py"))) if "auto_map" in config else ()

    def code_revision(self) -> str:
        """What one consent to that code holds for: its content."""
        digest = hashlib.sha256()
        for file in self.remote_code():
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
        return digest.hexdigest()

    def _has_weights(self) -> bool:
        if index := self._cached(INDEX):
            return all(self._cached(name) for name in set(_json(index).get("weight_map", {}).values()))
        return self._cached("model.safetensors") is not None

    def _cached(self, name: str) -> Path | None:
        assert isinstance(self.location, HubRepo)
        return hub.cached(HubFile(self.location.repo, name, self.location.revision))


def find(model: ModelRef) -> HfModel:
    """What the user named, in Hugging Face form. Raises ModelNotFound."""
    match model:
        case CatalogName():
            entry = catalog.find(model.name)
            if entry.hf_folder:
                return HfModel(selftest_dir() / entry.hf_folder)
            if entry.hub:
                return HfModel(HubRepo(entry.hub))
        case HubRepo():
            return HfModel(model)
        case Path():
            if model.is_dir():
                return HfModel(model)
            if not model.exists():
                raise ModelNotFound(f"there is no `{model}`", "give a folder with a `config.json` and safetensors")
        case HubFile() | OllamaTag():
            pass
    raise ModelNotFound(
        f"`{model}` is no model in Hugging Face form, which vLLM needs",
        f"serve it elsewhere: `llmdeploy serve {shlex.quote(str(model))} --engine llamacpp`; "
        "for vLLM give `owner/repo` or a folder",
    )


def read_hf(folder: Path) -> ModelFacts:
    """Sizes and shapes, from config.json and the sizes of the safetensors files. Raises ModelNotFound, ModelInvalid."""
    config = _json(folder / CONFIG)
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    assert isinstance(text, dict)
    layers, heads, hidden = (_number(text, name) for name in LAYERS_HEADS_HIDDEN)
    key_value, key, value = _cached_heads(text, heads, hidden)
    architectures = config.get("architectures")
    return ModelFacts(
        architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else "unknown",
        weights_bytes=sum(file.stat().st_size for file in _weights(folder)),
        kv_heads=_per_layer(text, key_value, min(layers, 100_000)),
        key_length=key,
        value_length=value,
        embedding_length=hidden,
        vocabulary_size=_number(text, "vocab_size", 0),
        context_length=_number(text, "max_position_embeddings", 0) or UNKNOWN_LENGTH,
        capabilities=("text", "image") if "vision_config" in config else ("text",),
        source="config.json and the safetensors files",
    )


def _cached_heads(text: dict[str, Any], heads: int, hidden: int) -> tuple[int, int, int]:
    """How many heads the KV cache has in a layer, and the lengths of a key and a value."""
    if latent := _number(text, "kv_lora_rank"):  # DeepSeek's: one latent vector for all heads
        return 1, latent + _number(text, "qk_rope_head_dim"), 0
    length = _number(text, "head_dim", hidden // heads if heads else 0)
    return _number(text, "num_key_value_heads", heads), length, length


def _per_layer(text: dict[str, Any], heads: int, layers: int) -> tuple[int, ...]:
    """The KV heads of each layer: none where a layer keeps a state of fixed size instead."""
    kinds = text.get("layer_types")
    if not isinstance(kinds, list) or len(kinds) != layers:
        return (heads,) * layers
    return tuple(0 if kind in STATEFUL else heads for kind in kinds)


def _weights(folder: Path) -> list[Path]:
    """The safetensors files that vLLM loads: of a repository of Mistral's, which has them twice, the consolidated."""
    return list(folder.glob("consolidated*.safetensors")) or list(folder.glob("*.safetensors"))


STATEFUL = ("linear_attention", "mamba", "conv")
LAYERS_HEADS_HIDDEN = ("num_hidden_layers", "num_attention_heads", "hidden_size")
LARGEST = 2**63 - 1


def _number(table: dict[str, Any], name: str, default: int = 0) -> int:
    value = table.get(name)
    return value if isinstance(value, int) and 0 <= value <= LARGEST else default


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFound(
            f"`{file.parent}` holds no `{file.name}`", "a model in Hugging Face form is a folder with one"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelInvalid(f"`{file}` cannot be read: {error}", "fetch the file again") from error
    if not isinstance(content, dict):
        raise ModelInvalid(f"`{file}` is no JSON object", "fetch the file again")
    return content


def _wanted(names: list[str]) -> Iterator[str]:
    """The files of a repository that are fetched: its top folder's. Raises ModelNotFound without safetensors."""
    if not any(name.endswith(".safetensors") and "/" not in name for name in names):
        raise ModelNotFound(
            "the repository holds no safetensors in its top folder",
            "name another repository, or a GGUF file of this one: `hf://owner/repo/file.gguf`",
        )
    for name in names:
        if "/" not in name and any(fnmatch(name, pattern) for pattern in WANTED):
            yield name
