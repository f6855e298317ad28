"""The places where models lie on this machine: one reader each. `llmdeploy.models.store` is the view of them all."""
