"""Sampling and calls of the oracle on a Ray cluster. The only package that imports Ray.

    executor.py       RayExecutor: the prior on many workers
    crew.py           the workers: shards go one at a time to whoever is free, a lost worker is replaced
    remote_oracle.py  calls of the oracle as tasks, which Ray never retries
    connection.py     the cluster: started here or joined, and left again

Sampling has no side effects, so it may be repeated at will, and a shard that is repeated comes to the same. A call of
the oracle is paid for: when its worker is lost nobody knows whether it was charged, and the ledger decides.
"""

from bbo.ray_executor.executor import RayExecutor as RayExecutor
