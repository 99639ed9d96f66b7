"""Measures a cluster of real nodes, and etcd beside it: ``python -m benchmarks``."""
