"""The collector on a real nats-server and a FakeCluster with its faults."""
