"""Many rows at once: ``kotoba import`` and ``kotoba export``, clients of the public API.

What a file says is read in ``columns`` (the language of headers) and ``sources`` (CSV, NDJSON);
``ledger`` remembers on disk what is done; ``loader`` sends, ``exporter`` and ``car`` take out;
``api`` is how both talk to all nodes of a cluster.
"""
