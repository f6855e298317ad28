"""The same requests to every real engine, through the gateway; the answers form one matrix.

`cases.py` has the requests and the answers expected from every engine. An answer that differs on one engine is listed
in `differences.py` with its reason, and in docs/api.md; any other difference fails.
"""
