"""The same requests to every real engine, through the gateway: what came is one matrix.

`cases.py` has the requests and what must come of each, the same for every engine. What comes otherwise on one of them
stands in `differences.py` with its reason, and in docs/api.md; anything else that differs fails.
"""
