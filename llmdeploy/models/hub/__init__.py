"""The Hugging Face Hub: a source of repositories, and the cache that all programs of this machine share.

This is the only package that imports huggingface_hub, which reads these variables: HF_ENDPOINT (a mirror), HF_TOKEN,
HF_HOME and HF_HUB_CACHE (the folder of the cache), HF_HUB_OFFLINE, HF_HUB_DISABLE_XET, HF_HUB_ETAG_TIMEOUT and
HF_HUB_DOWNLOAD_TIMEOUT (seconds until a silent server is given up; 10 each).
"""

from llmdeploy.models.hub.api import listing, open_remote
from llmdeploy.models.hub.cache import cache, cached, cached_paths, lock, part, place
from llmdeploy.models.hub.download import copy

__all__ = ["cache", "cached", "cached_paths", "copy", "listing", "lock", "open_remote", "part", "place"]
