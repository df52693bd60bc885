"""The prior on the workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import ray
from jaxtyping import Float
from torch import Tensor

from bbo.config.describe import describe_versions
from bbo.errors import ExecutorError
from bbo.executor import LocalExecutor, OnShard, Sampled, SampleRequest, unheard
from bbo.places import Ray
from bbo.potential import Potential
from bbo.ray_executor.connection import CONNECTION, sent
from bbo.ray_executor.crew import Crew, Job
from bbo.ray_executor.remote_oracle import RemoteOracle
from bbo.worker import Equipment, Worker
from oracles.base import Oracle
from smc.prior import Prior
from surrogate.features import Encoder, Flatten


@dataclass
class RayExecutor:
    """The prior on the workers of a cluster."""

    crew: Crew
    source: ray.ObjectRef
    """The prior, or what loads it."""
    equipment: Equipment
    covariance: Float[Tensor, "d d"] | None = None
    """How features vary together over the prior's designs; None where that is not known."""

    @classmethod
    def start(cls, place: Ray, prior: Prior) -> RayExecutor:
        """Return an executor whose workers are on their way."""
        CONNECTION.join(place.address)
        try:
            equipment = Equipment(
                n_threads=max(int(place.cpus_per_worker), 1),
                device="cuda" if place.gpus_per_worker > 0 else "cpu",
                max_batch=place.max_batch,
                fingerprint=prior.fingerprint(),
                versions=describe_versions(),
            )
            source = sent("the prior", prior if place.load_prior is None else place.load_prior)
            cpus = place.cpus_per_worker if CONNECTION.rations_cpus else 0
            resources = {"num_cpus": cpus, "num_gpus": place.gpus_per_worker}
            n_gpus = ray.cluster_resources().get("GPU", 0)
            if not CONNECTION.rations_cpus and place.n_workers * place.gpus_per_worker > n_gpus:
                raise ExecutorError(
                    f"{place.n_workers} workers with {place.gpus_per_worker:g} GPUs each need more than the {n_gpus:g} "
                    "of this machine; lower gpus_per_worker or n_workers"
                )
            kind = ray.remote(max_restarts=0, max_task_retries=0, **resources)(Worker)
            crew = Crew(kind.remote, place.n_workers, Job("load", (source, Flatten(), equipment)))
            return cls(crew, source, equipment)
        except BaseException:
            CONNECTION.leave()
            raise

    def sample(
        self, potential: Potential | None, requests: Sequence[SampleRequest], on_shard: OnShard = unheard
    ) -> list[Sampled]:
        """Return what each shard comes to, in order; the largest are begun first."""
        belief = None if potential is None else sent("the belief of this round", potential)
        jobs = [Job("sample", (belief, request), cost=request.n_rows) for request in requests]
        return self.crew.run(jobs, on_shard)

    def decode(self, x0: Float[Tensor, "n *event"]) -> Float[Tensor, "n *design"]:
        """Return the designs of clean latents, computed by one worker."""
        designs: Tensor = self.crew.run([Job("decode", (x0,))])[0]
        return designs

    def encode(self, designs: Float[Tensor, "n *design"]) -> Float[Tensor, "n d"]:
        """Return the features of designs, computed by one worker."""
        X: Tensor = self.crew.run([Job("encode", (designs,))])[0]
        return X

    def encoding(self, encoder: Encoder, covariance: Float[Tensor, "d d"] | None) -> RayExecutor:
        """Return this executor with another encoder, which all its workers take from now on."""
        kept = sent("the encoder", encoder)
        self.crew.equip(Job("load", (self.source, kept, self.equipment)), Job("use", (kept,)))
        return replace(self, covariance=covariance)

    @property
    def n_workers(self) -> int:
        """Workers that have the prior in memory."""
        return self.crew.n_ready

    def here(self) -> LocalExecutor:
        """Refuse: the networks are on other machines."""
        raise ExecutorError(
            "this method does more with the prior's networks than sample (it trains or differentiates them), and they "
            "are on the workers of a cluster; use executor: {type: local}"
        )

    def calling(self, oracle: Oracle) -> RemoteOracle:
        """Return the oracle as one that is called by tasks of this cluster."""
        return RemoteOracle(oracle)

    def close(self) -> None:
        """Dismiss the workers, and leave the cluster; one that was started for this is stopped."""
        if self.crew.is_dismissed:
            return
        try:
            self.crew.dismiss()
        finally:
            CONNECTION.leave()
