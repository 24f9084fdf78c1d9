"""What every test has: the real bus, the real API server, and the product's own test kit."""

pytest_plugins = ["tests.controlplane.fixtures", "tests.nats"]
