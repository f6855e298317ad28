"""The names of the Hub's repositories at ModelScope: the same in most cases."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from llmdeploy.models.reference import MAIN, HubFile, HubRepo

ELSEWHERE = {
    "01-ai/": "01ai/",
    "CohereForAI/": "AI-ModelScope/",
    "MiniMaxAI/": "MiniMax/",
    "THUDM/": "ZhipuAI/",
    "allenai/Molmo-": "LLM-Research/Molmo-",
    "baidu/ERNIE-": "PaddlePaddle/ERNIE-",
    "google/gemma-2-": "LLM-Research/gemma-2-",
    "google/gemma-2b": "AI-ModelScope/gemma-2b",
    "google/gemma-3-": "LLM-Research/gemma-3-",
    "google/gemma-3-270m": "google/gemma-3-270m",
    "google/gemma-7b": "AI-ModelScope/gemma-7b",
    "google/paligemma": "AI-ModelScope/paligemma",
    "hugging-quants/": "LLM-Research/",
    "internlm/": "Shanghai_AI_Laboratory/",
    "meta-llama/": "LLM-Research/",
    "meta-llama/Llama-3.1-": "LLM-Research/Meta-Llama-3.1-",
    "microsoft/Phi-": "LLM-Research/Phi-",
    "microsoft/phi-2": "AI-ModelScope/phi-2",
    "microsoft/phi-4": "LLM-Research/phi-4",
    "mistralai/Codestral-22B-v0.1": "swift/Codestral-22B-v0.1",
    "mistralai/Ministral-8B-Instruct-2410": "AI-ModelScope/Ministral-8B-Instruct-2410",
    "mistralai/Mistral-7B-": "AI-ModelScope/Mistral-7B-",
    "mistralai/Mistral-7B-Instruct-v0.3": "LLM-Research/Mistral-7B-Instruct-v0.3",
    "mistralai/Mistral-Large-Instruct-2407": "LLM-Research/Mistral-Large-Instruct-2407",
    "mistralai/Mistral-Nemo-": "AI-ModelScope/Mistral-Nemo-",
    "mistralai/Mistral-Small-Instruct-2409": "AI-ModelScope/Mistral-Small-Instruct-2409",
    "mistralai/Mixtral-": "AI-ModelScope/Mixtral-",
    "modelscope/": "AI-ModelScope/",
    "nvidia/Llama-3.1-Nemotron-70B-": "AI-ModelScope/Llama-3.1-Nemotron-70B-",
    "nvidia/NVIDIA-Nemotron-": "nv-community/NVIDIA-Nemotron-",
    "nvidia/Nemotron-Mini-": "AI-ModelScope/Nemotron-Mini-",
    "openai/gpt-oss-": "openai-mirror/gpt-oss-",
    "openbmb/": "OpenBMB/",
    "tencent/Hunyuan": "Tencent-Hunyuan/Hunyuan",
    "tencent/Hy3": "Tencent-Hunyuan/Hy3",
    "zai-org/": "ZhipuAI/",
}
"""How a name begins at the Hub, and at ModelScope; the longest beginning counts.

From the 1148 pairs of names in ms-swift's registry of models (github.com/modelscope/ms-swift, 3602360a5,
`swift/model/models`), those of text and vision that people deploy.
Llama 3.1 has lost its `Meta-` at the Hub since.
"""


Repository = TypeVar("Repository", bound=HubRepo | HubFile)


def at_modelscope(reference: Repository) -> Repository:
    """The same repository, or file of it, at ModelScope; whether it is there is not known.

    A revision that is not the main branch stays: the commits of the two are not the same.
    """
    if reference.source == "ms":
        return reference
    revision = MAIN["ms"] if reference.revision == MAIN["hf"] else reference.revision
    return replace(reference, repo=_name(reference.repo), revision=revision, source="ms")


def _name(repo: str) -> str:
    beginning = max((known for known in ELSEWHERE if repo.startswith(known)), key=len, default="")
    return ELSEWHERE[beginning] + repo.removeprefix(beginning) if beginning else repo
