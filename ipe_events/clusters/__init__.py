"""Finding clusters: one module per provider."""
