"""The handler runtime: registry, injection, lanes, retry, dead letters, health."""
