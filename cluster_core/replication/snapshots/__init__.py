"""Snapshots of partitions: how a replica gets what its leader's log no longer has (Raft §7).

``sending.py`` is the leader's side, ``receiving.py`` the other one, ``staging.py`` what lies on the
receiver's disk meanwhile and how it becomes the replica, ``messages.py`` what they tell each other.
"""

from cluster_core.replication.snapshots.messages import SNAPSHOT
from cluster_core.replication.snapshots.receiving import Receiver
from cluster_core.replication.snapshots.sending import Sender

__all__ = ["SNAPSHOT", "Receiver", "Sender"]
