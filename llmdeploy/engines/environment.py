"""The environment of a server: what it gets of the user's variables is a list that is ours.

A variable that is meant for another server of the same engine would open, redirect or break a private one: a key, a
port, a developers' mode. So a name that is on no list is not passed on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

COMMON = (
    # The user, the system and the language.
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "TZ", "TMPDIR", "TMP", "TEMP", "XDG_*"),
    *("LANG", "LANGUAGE", "LC_*", "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_*"),
    # Windows does not start programs without these.
    *("SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "OS", "USERNAME", "USERPROFILE", "HOMEDRIVE"),
    *("HOMEPATH", "APPDATA", "LOCALAPPDATA", "PROGRAMDATA", "PROGRAMFILES*", "COMMONPROGRAMFILES*"),
    *("NUMBER_OF_PROCESSORS", "PROCESSOR_*"),
    # Python and its environments.
    *("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONNOUSERSITE", "PYTHONPYCACHEPREFIX", "PYTHONUTF8"),
    *("PYTHONDONTWRITEBYTECODE", "PYTHONIOENCODING", "PYTHONHASHSEED", "PYTHONFAULTHANDLER", "PYTHONWARNINGS"),
    *("VIRTUAL_ENV", "CONDA_*"),
    # Proxies and certificates.
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    # Devices, threads and memory.
    *("CUDA_*", "NVIDIA_*", "NCCL_*", "HIP_*", "HSA_*", "ROCM_*", "ROCR_*", "GPU_*", "AMD_*", "MIOPEN_*", "GGML_*"),
    *("ONEAPI_*", "SYCL_*", "ZE_*", "VK_*", "OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "VECLIB_*"),
    *("MALLOC_*", "TCMALLOC_*"),
    # By this the processes of a service are found.
    "LLMDEPLOY_STATE_DIR",
)
"""Patterns of the names that every server gets, in capitals."""


def inherited(environment: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
    """Return the variables that a server gets: those of `COMMON` and of its engine's `patterns`.

    A pattern that begins with `-` takes names out again, whichever pattern took them in.
    """
    named = list(patterns)
    wanted = (*COMMON, *(pattern for pattern in named if not pattern.startswith("-")))
    refused = tuple(pattern[1:] for pattern in named if pattern.startswith("-"))
    return {
        name: value
        for name, value in environment.items()
        if _is_any(name.upper(), wanted) and not _is_any(name.upper(), refused)
    }


def _is_any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
