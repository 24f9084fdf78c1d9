"""Policy documents: load, validate, select."""
