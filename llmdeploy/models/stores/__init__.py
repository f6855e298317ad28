"""Readers of the places that have models on this machine, one each; `llmdeploy.models.store` combines them."""
