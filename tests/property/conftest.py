"""How Hypothesis runs here: no deadline per example, since two busy cores would turn a slow moment into a failure."""

from hypothesis import settings

settings.register_profile("ipe", deadline=None, max_examples=100)
settings.load_profile("ipe")
