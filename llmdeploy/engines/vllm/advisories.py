"""Published vulnerabilities of vLLM with the versions in their CVE records (`CVEProject/cvelistV5`) or at PyPA.

Those without a fixed version are not listed: no update would help.
"""

from __future__ import annotations

from llmdeploy.engines.advisories import Advisory

GITHUB = "https://github.com/vllm-project/vllm/security/advisories/"
PYPA = "https://osv.dev/vulnerability/"

ADVISORIES = (
    Advisory("CVE-2025-24357", "0.7.0", GITHUB + "GHSA-rh4j-5rhw-hr54", "code in pickle weights runs"),
    Advisory("CVE-2025-29783", "0.8.0", GITHUB + "GHSA-x3m8-f7g5-qhm7", "code by its network, with Mooncake", "0.6.5"),
    Advisory("CVE-2025-32444", "0.8.5", GITHUB + "GHSA-hj4w-hm2g-p6w5", "code by its network, with Mooncake", "0.6.5"),
    Advisory("CVE-2025-47277", "0.8.5", GITHUB + "GHSA-hjq4-87xh-g4fv", "code by its network, with PyNccl", "0.6.5"),
    Advisory("CVE-2025-62164", "0.11.1", GITHUB + "GHSA-mrw7-hf4f-83pf", "memory written by a request", "0.10.2"),
    Advisory("CVE-2025-66448", "0.11.1", GITHUB + "GHSA-8fr4-5q9j-m8gm", "a model's code runs unasked", runs_code=True),
    Advisory("CVE-2026-56340", "0.13.0", PYPA + "PYSEC-2026-250", "memory written by a request", "0.10.2"),
    Advisory(
        "CVE-2026-22807",
        "0.14.0",
        GITHUB + "GHSA-2pc9-4j83-qjmr",
        "a model's code runs unasked",
        "0.10.1",
        runs_code=True,
    ),
    Advisory("CVE-2026-22778", "0.14.1", GITHUB + "GHSA-4r2x-xpjr-7cvv", "addresses of its memory are told", "0.8.3"),
    Advisory("CVE-2026-24779", "0.14.1", GITHUB + "GHSA-qh4c-xf7m-gxfc", "a request makes it fetch any address"),
    Advisory("CVE-2026-25960", "0.17.0", GITHUB + "GHSA-v359-jj2v-j536", "the same, in another way", "0.15.1"),
    Advisory(
        "CVE-2026-27893",
        "0.18.0",
        GITHUB + "GHSA-7972-pg2x-xr59",
        "code of NemotronVL and KimiK25 runs unasked",
        "0.10.1",
        runs_code=True,
    ),
    Advisory(
        "CVE-2026-34753", "0.19.0", GITHUB + "GHSA-pf3h-qjgv-vcpr", "a batch makes it fetch any address", "0.16.0"
    ),
    Advisory("CVE-2026-44223", "0.20.0", GITHUB + "GHSA-83vm-p52w-f9pw", "one request ends it", "0.18.0"),
    Advisory("CVE-2026-41523", "0.22.0", PYPA + "PYSEC-2026-2300", "a model's code runs unasked, with python -O"),
    Advisory("CVE-2026-47155", "0.22.0", PYPA + "PYSEC-2026-2301", "a pinned revision is not used for all files"),
    Advisory("PYSEC-2026-2303", "0.24.0", PYPA + "PYSEC-2026-2303", "one request ends it", "0.12.0"),
    Advisory("PYSEC-2026-4199", "0.30.0", PYPA + "PYSEC-2026-4199", "one request ends it"),
    Advisory("PYSEC-2026-4349", "0.32.0", PYPA + "PYSEC-2026-4349", "a request brings its own template", "0.16.0"),
    Advisory("CVE-2026-115911", "0.32.0", PYPA + "PYSEC-2026-4344", "a template takes time without end", "0.19.0"),
)
