"""The bus: everything that talks to NATS, and the only package that imports its client."""
