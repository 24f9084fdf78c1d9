"""Test kit for handlers: FakeCluster, TestBus, clocks, fixtures."""
