"""llama.cpp: the embedded default engine."""
