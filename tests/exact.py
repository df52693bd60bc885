"""Networks in double precision, for gradients by finite differences."""

from oracles.images.network import Network


def in_double(network):
    """Return a copy of a frozen network of its own, with weights and activations in float64."""
    copy = Network(network._reader, network._source, network.fingerprint, network.device)
    copy.module.double()
    return copy
