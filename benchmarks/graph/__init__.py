"""A graph of many vertices and edges: how fast it loads, how fast it answers, and whether rightly.

``python -m benchmarks.graph``
"""
