"""Benchmarks: they compare within one run and are never part of the tests."""
