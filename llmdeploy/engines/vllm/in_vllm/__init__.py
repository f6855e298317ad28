"""The folder that is on the import path of vLLM: what is in it uses the standard library alone."""
