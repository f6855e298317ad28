"""vLLM: the engine for production on NVIDIA GPUs."""
