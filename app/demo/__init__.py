"""``kotoba-cluster demo``: the standard library as a graph, in a cluster that loses a node."""
